"""The 80 texts around a class name with which CLIP's authors evaluate on ImageNet, by their patterns.

A text feature is made of each, and those of a class are averaged; the order does not matter.
"""

from __future__ import annotations

_QUALITIES = (
    *("bad", "cropped", "bright", "good", "blurry", "pixelated", "jpeg corrupted", "black and white", "close-up"),
    *("dark", "low resolution"),
)
_ADJECTIVES = ("", "hard to see ", "clean ", "dirty ", "cool ", "nice ", "weird ", "large ", "small ")
_MEDIA = (
    *("a sculpture", "a rendering", "a rendition", "graffiti", "a tattoo", "a drawing", "a painting", "a doodle"),
    *("a sketch", "art", "itap"),
)
_KINDS = ("embroidered {}", "plastic {}", "origami {}", "toy {}", "cartoon {}", "plushie {}", "{} in a video game")
_SINGLES = ("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}.")

OPENAI_80 = (
    *(f"a {quality} photo of {article} {{}}." for quality in _QUALITIES for article in ("a", "the")),
    *(f"a photo of {article} {adjective}{{}}." for adjective in _ADJECTIVES for article in ("a", "the")),
    *(f"{medium} of {article} {{}}." for medium in _MEDIA for article in ("a", "the")),
    *(f"{article} {kind}." for kind in _KINDS for article in ("a", "the")),
    *_SINGLES,
)
