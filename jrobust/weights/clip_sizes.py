"""Which CLIP a file's weights are of, read from the shapes of its arrays."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jrobust.errors import InputError
from jrobust.models.clip import ARCHITECTURES, Sizes
from jrobust.weights.clip_names import Layout, detect


def architecture(arrays: Mapping[str, Any], source: str) -> Sizes:
    """Return the sizes of the model that a file's arrays are of; heads, which no shape shows, are taken to be 64 wide.

    Raises:
      InputError: it has none of the layouts, or lacks an array that says a size.
    """
    layout, arrays = detect(arrays, source)
    shapes = Shapes(layout, arrays, source)
    vocabulary, text_width = shapes.of("text/token_embedding/embedding", 2)
    return Sizes(
        embed_dim=shapes.of("text/proj/kernel", 2)[0 if layout.name == "hugging_face" else 1],
        text_width=text_width,
        text_layers=shapes.count("text/blocks_0/ln_1/scale"),
        vocabulary=vocabulary,
        context=shapes.of("text/pos_embedding", 2)[0],
        **image_record(shapes),
    )


class Shapes:
    """The shapes of a file's arrays by own paths.

    Attributes:
      prefix: what stands in the file where the layout's names of the image tower begin with `visual.`.
    """

    def __init__(self, layout: Layout, arrays: Mapping[str, Any], source: str, prefix: str = "visual."):
        self.layout, self.source, self.prefix = layout, source, prefix
        self.shapes = {name: np.shape(array) for name, array in arrays.items()}

    def name(self, path: str) -> str:
        """Return the file's name of an own leaf."""
        return re.sub(r"^visual\.", self.prefix, self.layout.foreign(path)[0])

    def of(self, path: str, rank: int) -> tuple[int, ...]:
        """Return the shape, as in the file, of an own leaf; InputError where there is none of that rank."""
        name = self.name(path)
        found = self.shapes.get(name)
        if found is None or len(found) != rank or 0 in found:
            said = "lacks it" if found is None else f"has the shape {found}"
            raise InputError(
                f"{self.source} ({self.layout.name} layout): the size of the model is read from {name}, the file {said}"
            )
        return found

    def count(self, path: str) -> int:
        """Return one more than the largest number in the place of the 0 of an own path."""
        before = self.name(path).split(".0.")[0]
        numbers = [re.match(rf"{re.escape(before)}\.(\d{{1,4}})\.", name) for name in self.shapes]
        return max((1 + int(number[1]) for number in numbers if number), default=0)


def image_record(shapes: Shapes) -> dict[str, Any]:
    """Return the fields of `Sizes` that are of an image tower alone."""
    if shapes.name("image/stem/conv3/kernel") in shapes.shapes:
        stages = tuple(shapes.count(f"image/layer{stage}_0/conv1/kernel") for stage in (1, 2, 3, 4))
        side = math.isqrt(shapes.of("image/attnpool/pos_embedding", 2)[0] - 1)
        width = shapes.of("image/stem/conv3/kernel", 4)[0]
        return {"image_size": 32 * side, "image_width": width, "image_layers": stages, "patch": None}
    width, _, _, patch = shapes.of("image/patch_embed/kernel", 4)
    side = math.isqrt(shapes.of("image/pos_embedding", 2)[0] - 1)
    layers = shapes.count("image/blocks_0/ln_1/scale")
    return {"image_size": patch * side, "image_width": width, "image_layers": layers, "patch": patch}


def check(found: Mapping[str, Any], expected: Sizes, source: str) -> None:
    """Raise InputError where fields of a file's model differ in more than the heads, and name both models."""
    theirs = {name: value for name, value in found.items() if not name.endswith("_heads")}

    def record(sizes: Sizes) -> dict[str, Any]:
        return {name: getattr(sizes, name) for name in theirs}

    def title(fields: dict[str, Any]) -> str:
        return next((name for name, known in ARCHITECTURES.items() if record(known) == fields), "another model")

    ours = record(expected)
    if theirs != ours:
        fields = [f"{name} {theirs[name]} and not {ours[name]}" for name in theirs if theirs[name] != ours[name]]
        raise InputError(
            f"{source} holds {title(theirs)}, this model is {title(ours)}: the file has {', '.join(fields)}"
        )


def check_architecture(arrays: Mapping[str, Any], expected: Sizes, source: str) -> None:
    """Raise InputError where a whole CLIP's arrays are not of the model expected."""
    check(dataclasses.asdict(architecture(arrays, source)), expected, source)
