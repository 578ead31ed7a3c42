"""CLIP's image tower alone: the checkpoints that others derive from CLIP, and files for their code.

| form | file | names of the image tower begin with |
|---|---|---|
| clip | a whole CLIP, in any layout of `clip_names`, or its `visual.*` alone | `visual.` |
| tecoa | checkpoint of TeCoA and PMG-AFT: the entry `vision_encoder_state_dict` | nothing |
| masked_images | checkpoint of the masked-image code, with the head `classifier` | `backbone.` |
| model_soups | state_dict of model-soups, with the head `classification_head` | `model.visual.` |

TeCoA's checkpoints also hold visual prompts, in the entries `state_dict` (a border) and `add_prompter` (tokens).
Whatever else a checkpoint has, such as an optimizer, is passed over; what lies among the tower's own arrays is not.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.errors import InputError, unknown
from jrobust.models.clip import CLIP, Prompts
from jrobust.models.clip.prompts import Border
from jrobust.models.tree import flatten
from jrobust.weights import arrays as arrays_file
from jrobust.weights.arrays import some
from jrobust.weights.clip_layouts import fill, to_foreign
from jrobust.weights.clip_names import LAYOUTS, Layout
from jrobust.weights.clip_sizes import Shapes, check, image_record
from jrobust.weights.torch_layouts import fit

PREFIXES = {"model_soups": "model.visual.", "masked_images": "backbone.", "clip": "visual.", "tecoa": ""}
HEADS = {"model_soups": "classification_head", "masked_images": "classifier"}
TOWER_ENTRY, BORDER_ENTRY, TOKEN_ENTRY = "vision_encoder_state_dict", "state_dict", "add_prompter"
# What may stand beside a tower, as a regular expression: texts, and numbers that a network only carries along.
TEXTS = r"(transformer|token_embedding|ln_final|text)\.|(positional_embedding|text_projection|logit_scale)$"
CARRIED = r"input_resolution$|context_length$|vocab_size$"
BESIDE = {
    "model_soups": rf"model\.({TEXTS}|{CARRIED})",
    "clip": rf"{TEXTS}|{CARRIED}",
    "hugging_face": r"text_model\.|(text_projection\.weight|logit_scale)$",
}


class ImageTower(NamedTuple):
    """What a file has besides texts."""

    params: dict[str, Any]  # as of `CLIP.init` without texts: {"image"}, and of a ResNet {"batch_stats": {"image"}}
    prompts: Prompts | None = None
    head: dict[str, Any] | None = None  # of unit features: {"kernel": float32[E, K], "bias": float32[K]}


def load_image_tower(path: str | pathlib.Path, clip: CLIP) -> ImageTower:
    """Return the image tower of a file of any of the forms above; nothing is unpickled.

    The file is .pt, .pth, .safetensors or .npz; of safetensors, whose names are flat, the form is known by its names.
    A prefix `module.`, counters and position ids are passed over.

    Raises:
      InputError: the file cannot be read; it has no image tower of CLIP; it is of another architecture than `clip`;
        missing or surplus names; a shape that differs; or no finite numbers of floating point.
    """
    path = pathlib.Path(path)
    entries = arrays_file.entries(path)
    if TOWER_ENTRY not in entries:
        return _tower(_stripped(arrays_file.read(path)[0]), clip, str(path))
    tower = _tower(_stripped(arrays_file.read(path, TOWER_ENTRY)[0]), clip, f"{path}: {TOWER_ENTRY}")
    found: dict[str, Any] = {}
    for entry in (BORDER_ENTRY, TOKEN_ENTRY):
        if entry in entries:
            found |= _stripped(arrays_file.read(path, entry)[0])
    return tower._replace(prompts=_prompts(found, clip, str(path)))


def write_image_tower(path: str | pathlib.Path, tower: ImageTower, form: str = "clip") -> None:
    """Write an image tower, and its head where the form has one, as .safetensors with flat names, for PyTorch.

    What `safetensors.torch.load_file` gives is for `load_state_dict`: in the form "clip" of a CLIP that needs no texts
    (`strict=False`), in "tecoa" of its module `visual`, in the others of the network with its head.

    Raises:
      InputError: an unknown form; a head missing, or one that the form has no place for, as for prompts; another
        ending, or a folder that cannot be written.
    """
    if form not in PREFIXES:
        raise unknown("form of an image tower", form, PREFIXES)
    if tower.prompts is not None:
        raise InputError("visual prompts have no place in a file for PyTorch: write the tower without them")
    if (tower.head is not None) != (form in HEADS):
        raise InputError(f"the form {form} has {'a' if form in HEADS else 'no'} head: expected the tower to be so")
    arrays = {_renamed(name, PREFIXES[form]): array for name, array in to_foreign(tower.params).items()}
    if tower.head is not None:
        arrays[f"{HEADS[form]}.weight"] = np.ascontiguousarray(np.asarray(tower.head["kernel"]).T)
        arrays[f"{HEADS[form]}.bias"] = np.asarray(tower.head["bias"])
    arrays_file.write(pathlib.Path(path), arrays, {"format": "pt", "layout": f"clip image tower ({form})"})


def _stripped(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays without `module.` and without what no network of ours has."""
    names = {name.removeprefix("module."): array for name, array in arrays.items()}
    return {name: a for name, a in names.items() if not re.search(r"\.num_batches_tracked$|\.position_ids$", name)}


def _renamed(name: str, prefix: str) -> str:
    return re.sub(r"^visual\.", prefix, name)


def _form(arrays: Mapping[str, Any], source: str) -> tuple[str, Layout]:
    """Return the form and the layout of a file by its keys; Hugging Face's is a form by itself."""
    if "vision_model.embeddings.patch_embedding.weight" in arrays:
        return "hugging_face", LAYOUTS["hugging_face"]
    for form, prefix in PREFIXES.items():
        norms = (f"{prefix}ln_pre.", f"{prefix}attnpool.")  # which torchvision's ResNets have not
        if f"{prefix}conv1.weight" in arrays and any(name.startswith(norms) for name in arrays):
            return form, LAYOUTS["openai"]
    raise InputError(
        f"{source} has keys such as {some(sorted(arrays)) or 'none'}: expected CLIP's image tower in one of the forms "
        f"{', '.join(PREFIXES)}"
    )


def _tower(arrays: dict[str, Any], clip: CLIP, source: str) -> ImageTower:
    """Return the tower and the head among a file's arrays."""
    form, layout = _form(arrays, source)
    prefix = PREFIXES.get(form, "visual.")
    check(image_record(Shapes(layout, arrays, source, prefix)), clip.sizes, source)
    shapes = flatten(jax.eval_shape(clip.init, jax.random.key(0)))
    wanted = {path: leaf for path, leaf in shapes.items() if path.startswith(("image/", "batch_stats/image/"))}
    places = {path: layout.foreign(path) for path in wanted}
    places = {path: (_renamed(name, prefix), third) for path, (name, third) in places.items()}
    head = {name: arrays.pop(name) for name in list(arrays) if name.startswith(f"{HEADS.get(form, 'no head')}.")}
    if form in BESIDE:
        own = {name for name, _ in places.values()}
        arrays = {name: array for name, array in arrays.items() if name in own or not re.match(BESIDE[form], name)}
    params = jax.tree.map(jnp.asarray, fill(wanted, places, arrays, layout, source))
    return ImageTower(params, head=_head(head, HEADS[form], clip, source) if head else None)


def _head(arrays: Mapping[str, Any], name: str, clip: CLIP, source: str) -> dict[str, Any]:
    if set(arrays) != {f"{name}.weight", f"{name}.bias"} or np.ndim(arrays[f"{name}.weight"]) != 2:
        raise InputError(f"{source} has the head {some(sorted(arrays))}: expected {name}.weight, a matrix, and .bias")
    classes, features = len(arrays[f"{name}.weight"]), clip.sizes.embed_dim

    def leaf(kind: str, *shape: int) -> jax.Array:
        found = f"{name}.{kind}"
        wanted = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jnp.asarray(fit(arrays[found], wanted, f"{source}: {found}", hint="").T)

    return {"kernel": leaf("weight", classes, features), "bias": leaf("bias", classes)}


def _prompts(arrays: dict[str, Any], clip: CLIP, source: str) -> Prompts | None:
    """Return the prompts of TeCoA's code: four sides of a border, 1 x 3 x rows x columns, and tokens 1 x P x width."""
    sides, side = tuple(f"pad_{name}" for name in Border._fields), clip.sizes.image_size
    if arrays and set(arrays) not in ({*sides}, {*sides, "prompt"}, {"prompt"}):
        raise InputError(f"{source} has prompts {some(sorted(arrays), 5)}: expected {', '.join(sides)} and prompt")

    def leaf(name: str, *shape: int) -> jax.Array:
        wanted = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        return jnp.asarray(fit(arrays[name], wanted, f"{source}: {name}", hint="")[0])

    pixels, tokens = None, None
    if sides[0] in arrays and (width := arrays[sides[0]].shape[2:3]) != (0,):
        (wide,) = width or (0,)
        outer, inner = (3, wide, side), (3, side - 2 * wide, wide)
        parts = [leaf(name, *shape) for name, shape in zip(sides, (outer, outer, inner, inner), strict=True)]
        pixels = Border(*(part.transpose(1, 2, 0) for part in parts))
    if "prompt" in arrays and (count := arrays["prompt"].shape[1:2]) != (0,):
        tokens = leaf("prompt", *count, clip.sizes.image_width)
    return None if pixels is None and tokens is None else Prompts(pixels, tokens)
