"""What a run exports: its weights with all that is needed to use them, under others' names, or as a program."""

from __future__ import annotations

import pathlib
from typing import Any

import assembly
import jax
import numpy as np

from jrobust.errors import InputError
from jrobust.models.classifier import Classifier
from jrobust.models.clip.linear_head import LinearHead
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.training.method import Variables
from jrobust.weights import arrays, clip_layouts, clip_towers, safetensors_file, stablehlo, torch_layouts


def weights(
    parts: assembly.Parts,
    deployed: Variables,
    step: int | None,
    output: pathlib.Path,
    *,
    chosen: str = "",
    **measured: Any,
) -> dict[str, Any]:
    """Write the weights with what one must know to use them; return their manifest.

    Args:
      parts: of the run.
      deployed: the variables of the network.
      step: where they are from; None for an average.
      output: the file.
      chosen: how the step was chosen, if it was; see `assembly.choice`.
      **measured: goes into the manifest.
    """
    return safetensors_file.write(
        output,
        parts.classifier,
        deployed.params,
        deployed.state,
        model=parts.config.model.to_dict(),
        **_origin(parts, step, chosen, **measured),
    )


def program(
    parts: assembly.Parts, deployed: Variables, step: int, output: pathlib.Path, *, chosen: str = ""
) -> dict[str, Any]:
    """Write the method's logits, as they are evaluated, as one program with the weights inside; return what it says."""
    model = assembly.subject(parts, deployed, output.stem, step)
    weights_inside = jax.tree.map(np.asarray, deployed)
    return stablehlo.write(
        output,
        lambda images: model.logits(weights_inside, images),
        parts.classifier,
        **_origin(parts, step, chosen),
    )


def torch(parts: assembly.Parts, deployed: Variables, output: pathlib.Path) -> str:
    """Write the weights under PyTorch's names; return which. Of a CLIP that is all of it, with the tower as trained.

    Raises:
      InputError: a network that PyTorch has no names for; visual prompts; or the file of a CLIP's texts is not there.
    """
    if isinstance(parts.classifier, LinearHead):
        frozen = {name: leaf.value for name, leaf in deployed.state.items()}
        tower = clip_towers.ImageTower({"image": deployed.params["image"]} | frozen, head=deployed.params["head"])
        clip_towers.write_image_tower(output, tower, "masked_images")
        return "masked_images"
    if not isinstance(parts.classifier, ZeroShot):
        assert isinstance(parts.classifier, Classifier)
        return torch_layouts.write(output, parts.classifier, *deployed).name
    assert parts.texts is not None
    if parts.classifier.prompts is not None:
        raise InputError("visual prompts have no place in a file for PyTorch: take --format=safetensors")
    clip_layouts.write(output, parts.texts.params | {"image": deployed.params})
    return "openai"


def _origin(parts: assembly.Parts, step: int | None, chosen: str, **measured: Any) -> dict[str, Any]:
    """Return where a model comes from, as the exported files say it."""
    method = parts.config.method
    file = parts.texts.weights if parts.texts is not None else parts.config.model.get("weights", "")
    choices = {"chosen": chosen} if chosen else {}
    return {
        "class_names": parts.train.class_names,
        "data_set": parts.config.data.name,
        "threat_model": f"Linf {method.eps}" if "eps" in method else "",
        "source": arrays.source(file) if file and pathlib.Path(file).expanduser().is_file() else {},
        "extra": {"method": method.to_dict(), "step": step, "seed": parts.config.seed} | choices | measured,
    }
