"""CLIP's image tower as a classifier: texts of the classes stand where others have a linear layer.

The texts are encoded once (`class_features`). The text tower is in no training step, no attack and no checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jrobust.errors import InputError, unknown
from jrobust.models.clip.architectures import Sizes
from jrobust.models.clip.clip import CLIP
from jrobust.models.clip.prompts import Prompts, border
from jrobust.models.clip.similarity import similarity, unit
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.replicated import Replicated

PIXELS = ("", "border", "full")


@dataclasses.dataclass(frozen=True)
class PromptSizes:
    """What visual prompts are made of: pixels, tokens or both. All are drawn from N(0, 1), as in TeCoA's code.

    Attributes:
      pixels: "border", a frame of `width` pixels; "full", the whole image; "" for none.
      width: of the frame.
      tokens: how many stand behind the patches.

    Raises:
      InputError: an unknown word, a number out of range, or nothing at all.
    """

    pixels: str = "border"
    width: int = 30
    tokens: int = 100

    def __post_init__(self) -> None:
        if self.pixels not in PIXELS:
            raise unknown("model.prompts.pixels", self.pixels, PIXELS)
        if self.tokens < 0 or (not self.pixels and not self.tokens):
            raise InputError(
                f"model.prompts has pixels {self.pixels!r} and {self.tokens} tokens: expected one or the other, or both"
            )

    def init(self, key: jax.Array, sizes: Sizes) -> Prompts:
        """Return fresh prompts for a tower."""
        pixel_key, token_key = jax.random.split(key)
        side = sizes.image_size
        pixels: Any = None
        if self.pixels == "border":
            pixels = border(pixel_key, side, self.width)
        elif self.pixels == "full":
            pixels = jax.random.normal(pixel_key, (side, side, 3))
        tokens = jax.random.normal(token_key, (self.tokens, sizes.image_width)) if self.tokens else None
        return Prompts(pixels, tokens)


@dataclasses.dataclass(frozen=True)
class ZeroShot(TowerClassifier):
    """Images float[B, H, W, 3] in [0, 1] of any size to logits over classes that texts describe.

        z_k = s <f(x) / |f(x)|, W_k>        f the image tower, W_k the unit feature of class k's texts

    Parameters are the image tower or, with `prompts`, those alone. All else is state, and frozen: {"text": W
    float32[K, E], "logit_scale": float32[], "tower" with `prompts`, "batch_stats" of a ResNet}, each `Replicated`.

    Attributes:
      scaled: s = exp(logit_scale), about 100 in the released weights, as in TeCoA's code; else s = 1, as in that of
        PMG-AFT, whose second normalisation of the texts removes the scale.
      prompts: what is trained in the place of the tower; None trains the tower.
    """

    scaled: bool = True
    prompts: PromptSizes | None = None

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return fresh `(params, state)`, the texts' features random directions."""
        return _init(self.with_axis(None), key)

    def pretrained(self, fresh: Any, clip_params: Mapping[str, Any], text: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)` with the weights of a whole CLIP; prompts stay as they are in `fresh`.

        Args:
          fresh: parameters as `init` returns them.
          clip_params: as `CLIP.init` returns them.
          text: W float32[K, E], see `class_features`.
        """
        wide = jnp.promote_types(jnp.float32, self.clip.dtype)
        state = {"text": Replicated(text.astype(wide)), "logit_scale": Replicated(clip_params["logit_scale"])}
        if "batch_stats" in clip_params:
            state["batch_stats"] = Replicated(clip_params["batch_stats"])
        if self.prompts is None:
            return clip_params["image"], state
        return fresh, state | {"tower": Replicated(clip_params["image"])}

    def features(self, params: Any, state: Any, images: jax.Array, **options: Any) -> jax.Array:
        """Return f(x) float32[B, E], through the prompts if there are any."""
        if self.prompts is None:
            return self.tower(params, state, images, **options)
        return self.tower(state["tower"].value, state, images, prompts=params, **options)

    def original_features(self, state: Any, images: jax.Array, prompts: Prompts | None = None) -> jax.Array:
        """Return f0(x) float32[B, E] of the frozen tower state["tower"]."""
        return self.tower(state["tower"].value, state, images, prompts=prompts)

    def head(self, params: Any, state: Any, features: jax.Array) -> jax.Array:
        """Return z float32[B, K] of features float32[B, E]; no parameter is in it."""
        del params
        return self.logits(state, features)

    def logits(self, state: Any, features: jax.Array) -> jax.Array:
        """Return z float32[B, K] of features float32[B, E]."""
        return similarity(features, state["text"].value, state["logit_scale"].value if self.scaled else None)


@functools.partial(jax.jit, static_argnums=0)
def _init(model: ZeroShot, key: jax.Array) -> tuple[Any, Any]:
    tower_key, text_key, prompt_key = jax.random.split(key, 3)
    whole = model.clip.init(tower_key)  # the text tower is not computed: nothing depends on it
    text = unit(jax.random.normal(text_key, (model.num_classes, model.clip.sizes.embed_dim)))
    prompts = None if model.prompts is None else model.prompts.init(prompt_key, model.clip.sizes)
    return model.pretrained(prompts, whole, text)


def class_features(clip: CLIP, params: Any, tokens: jax.Array, *, chunk: int = 256) -> jax.Array:
    """Return W float32[K, E], the unit feature of each class: of its texts' unit features the mean, made unit again.

    Args:
      clip, params: the towers; `params` needs only "text".
      tokens: int32[K, M, T], M texts a class.
      chunk: texts at a time.
    """
    classes, texts, length = tokens.shape
    rows = jnp.asarray(tokens, jnp.int32).reshape(-1, length)
    short = -len(rows) % min(chunk, len(rows))
    rows = jnp.concatenate([rows, jnp.repeat(rows[-1:], short, 0)]).reshape(-1, min(chunk, len(rows)), length)
    features = jnp.concatenate([_text_features(clip, params["text"], part) for part in rows])
    return unit(jnp.mean(features[: classes * texts].reshape(classes, texts, -1), axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _text_features(clip: CLIP, text: Any, tokens: jax.Array) -> jax.Array:
    return unit(clip.text_features({"text": text}, tokens))
