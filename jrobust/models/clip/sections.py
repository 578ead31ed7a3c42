"""From a config section to a CLIP and a classifier on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jrobust.errors import InputError, unknown
from jrobust.models.clip.architectures import ARCHITECTURES, Sizes
from jrobust.models.clip.clip import CLIP
from jrobust.models.clip.linear_head import LinearHead
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.models.clip.zero_shot import PromptSizes, ZeroShot

OF_TOWERS = ("dtype", "activation", "interpolation", "recompute")
HEADS = ("text", "linear")
# Fields of config.model; those of the last line are for whoever makes the first variables and the texts.
FIELDS = (
    *("name", "architecture", "sizes", *OF_TOWERS, "mean", "std"),
    *("head", "scaled", "prompts"),
    *("weights", "teacher", "vocabulary", "template"),
)


def towers(config_model: Mapping[str, Any]) -> CLIP:
    """Return the towers that a config section names.

    Args:
      config_model: `architecture`, one of `ARCHITECTURES`, or "" and `sizes`, the fields of `Sizes`; and any of
        `dtype`, `activation`, `interpolation`, `recompute`, `mean`, `std`.

    Raises:
      InputError: an unknown architecture, or sizes that make no model.
    """
    config = dict(config_model)
    _check("field of model 'clip'", config, FIELDS)
    architecture, sizes = config.get("architecture", ""), dict(config.get("sizes") or {})
    if sizes:
        _check("field of model.sizes", sizes, [field.name for field in dataclasses.fields(Sizes)])
        chosen = Sizes(**sizes)
    elif architecture in ARCHITECTURES:
        chosen = ARCHITECTURES[architecture]
    else:
        raise unknown("model.architecture", architecture, ARCHITECTURES, "or give model.sizes")
    settings: dict[str, Any] = {name: config[name] for name in OF_TOWERS if name in config}
    settings |= {name: tuple(config[name]) for name in ("mean", "std") if config.get(name)}
    return CLIP(chosen, **settings)


def build(config_model: Mapping[str, Any], *, num_classes: int, input_shape: Sequence[int]) -> TowerClassifier:
    """Return the classifier of a config section; see `towers`.

    `head` is "text", a `ZeroShot` with its fields `scaled` and `prompts`, or "linear", a `LinearHead`.

    Raises:
      InputError: as `towers`; an unknown head, prompts for a linear one, or images that are not RGB.
    """
    shape, head = tuple(input_shape), config_model.get("head", "text")
    if len(shape) != 3 or shape[2] != 3:
        raise InputError(f"images have the shape {shape}: CLIP expects three channels, red, green and blue")
    if head not in HEADS:
        raise unknown("model.head", head, HEADS)
    prompts = dict(config_model.get("prompts") or {})
    _check("field of model.prompts", prompts, [field.name for field in dataclasses.fields(PromptSizes)])
    if head == "linear":
        if prompts:
            raise InputError("model.prompts with model.head 'linear': visual prompts are trained with the texts alone")
        return LinearHead(towers(config_model), num_classes, shape)
    return ZeroShot(
        towers(config_model),
        num_classes,
        shape,
        scaled=bool(config_model.get("scaled", True)),
        prompts=PromptSizes(**prompts) if prompts else None,
    )


def _check(kind: str, given: Iterable[str], allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            raise unknown(kind, name, allowed)
