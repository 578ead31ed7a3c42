"""The world's names and axis orders for CLIP's weights, both ways.

| layout | files |
|---|---|
| openai | OpenAI's archives, and open_clip's models of its class CLIP |
| open_clip_text | open_clip's models with a text tower of their own, whose names begin with `text.` |
| hugging_face | transformers' CLIPModel; vision transformers only |

The own tree is that of `jrobust.models.clip`. Of PyTorch's arrays, convolutions are OIHW and linear weights
(out, in), and heads are not apart; in the first two layouts query, key and value are the thirds of one matrix, and the
two projections into the joint space are (in, out).

Which activation the weights were trained with (`CLIP.activation`) stands in none of these files.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.errors import InputError, unknown
from jrobust.models.clip import ARCHITECTURES, CLIP, Sizes
from jrobust.models.tree import flatten, unflatten
from jrobust.weights import arrays as arrays_file
from jrobust.weights.arrays import some
from jrobust.weights.torch_layouts import LEAVES

# Regular expressions that turn own dotted names into foreign ones, in this order.
OPENAI = (
    (r"^image\.(patch_embed|stem\.conv1)$", "visual.conv1"),
    (r"^image\.stem\.", "visual."),
    (r"^image\.blocks_", "visual.transformer.resblocks."),
    (r"^image\.layer(\d)_(\d+)\.", r"visual.layer\1.\2."),
    (r"^image\.", "visual."),
    (r"^text\.blocks_", "transformer.resblocks."),
    (r"^text\.proj$", "text_projection"),
    (r"^text\.", ""),
    (r"\bpos_embedding$", "positional_embedding"),
    (r"\battn\.(query|key|value)$", "attn.in_proj_"),
    (r"\battn\.out$", "attn.out_proj"),
    (r"\bfc1$", "c_fc"),
    (r"\bfc2$", "c_proj"),
    (r"\bdown_conv$", "downsample.0"),
    (r"\bdown_bn$", "downsample.1"),
    (r"\battnpool\.out$", "attnpool.c_proj"),
    (r"\battnpool\.(q|k|v)\w+$", r"attnpool.\1_proj"),
)
HUGGING_FACE = (
    (r"^image\.patch_embed$", "vision_model.embeddings.patch_embedding"),
    (r"^image\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^image\.pos_embedding$", "vision_model.embeddings.position_embedding"),
    (r"^image\.ln_pre$", "vision_model.pre_layrnorm"),  # written so there
    (r"^image\.ln_post$", "vision_model.post_layernorm"),
    (r"^image\.proj$", "visual_projection"),
    (r"^text\.token_embedding$", "text_model.embeddings.token_embedding"),
    (r"^text\.pos_embedding$", "text_model.embeddings.position_embedding"),
    (r"^text\.ln_final$", "text_model.final_layer_norm"),
    (r"^text\.proj$", "text_projection"),
    (r"^image\.blocks_", "vision_model.encoder.layers."),
    (r"^text\.blocks_", "text_model.encoder.layers."),
    (r"\battn\.(q|k|v)\w+$", r"self_attn.\1_proj"),
    (r"\battn\.out$", "self_attn.out_proj"),
    (r"\bln_(\d)$", r"layer_norm\1"),
)
TEXT = ((r"^(transformer|token_embedding|positional_embedding|ln_final|text_projection)", r"text.\1"),)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A naming of CLIP's weights."""

    name: str
    rules: tuple[tuple[str, str], ...]
    mark: str  # the key by which a file is known
    joint: bool  # query, key and value are one matrix
    bare: str  # own names, as a regular expression, whose foreign ones have no `.weight`
    unused: str  # keys, as a regular expression, that are passed over in reading

    def foreign(self, path: str) -> tuple[str, int | None]:
        """Return the name of an own leaf, and which third of that array it is; None is the whole.

        >>> LAYOUTS["openai"].foreign("image/blocks_3/attn/key/kernel")
        ('visual.transformer.resblocks.3.attn.in_proj_weight', 1)
        >>> LAYOUTS["hugging_face"].foreign("image/blocks_3/attn/key/kernel")
        ('vision_model.encoder.layers.3.self_attn.k_proj.weight', None)
        """
        path = path.removeprefix("batch_stats/")
        module, _, leaf = path.rpartition("/")
        if leaf not in (*LEAVES, "embedding"):  # an array by itself
            module, leaf = path, "kernel"
        own, third = module.replace("/", "."), None
        if self.joint and own.rpartition(".")[0].endswith(".attn"):
            third = {"query": 0, "key": 1, "value": 2}.get(own.rpartition(".")[2])
        name = own
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        suffix = LEAVES.get(leaf, "weight")
        return (name if re.search(self.bare, own) else f"{name}{'' if third is not None else '.'}{suffix}"), third


COUNTERS = r"num_batches_tracked$|^(input_resolution|context_length|vocab_size)$"
BARE = r"(pos|class)_embedding$|^logit_scale$|^(image|text)\.proj$"
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("openai", OPENAI, "token_embedding.weight", True, BARE, COUNTERS),
        Layout("open_clip_text", OPENAI + TEXT, "text.token_embedding.weight", True, BARE, COUNTERS),
        Layout(
            "hugging_face",
            HUGGING_FACE,
            "text_model.embeddings.token_embedding.weight",
            False,
            r"^image\.class_embedding$|^logit_scale$",
            r"\.position_ids$",
        ),
    )
}


def detect(arrays: Mapping[str, Any], source: str) -> tuple[Layout, dict[str, Any]]:
    """Return the layout of a file by its keys, and its arrays without what is passed over and without `module.`.

    Raises:
      InputError: it has none of the layouts.
    """
    names = {name.removeprefix("module."): array for name, array in arrays.items()}
    for layout in LAYOUTS.values():
        if layout.mark in names:
            return layout, {name: array for name, array in names.items() if not re.search(layout.unused, name)}
    raise InputError(
        f"{source} has keys such as {some(sorted(names)) or 'none'}: expected CLIP's weights, both towers, in one of "
        f"the layouts {', '.join(LAYOUTS)}"
    )


def architecture(arrays: Mapping[str, Any], source: str) -> Sizes:
    """Return the sizes of the model that a file's arrays are of; heads, which no shape shows, are taken to be 64 wide.

    Raises:
      InputError: it has none of the layouts, or lacks an array that says a size.
    """
    layout, arrays = detect(arrays, source)
    shapes = {name: np.shape(array) for name, array in arrays.items()}

    def shape(path: str, rank: int) -> tuple[int, ...]:
        name, _ = layout.foreign(path)
        found = shapes.get(name)
        if found is None or len(found) != rank or 0 in found:
            said = "lacks it" if found is None else f"has the shape {found}"
            raise InputError(
                f"{source} ({layout.name} layout): the size of the model is read from {name}, the file {said}"
            )
        return found

    def count(path: str) -> int:
        """Return one more than the largest number in the place of the 0 of an own path."""
        before = layout.foreign(path)[0].split(".0.")[0]
        numbers = [re.match(rf"{re.escape(before)}\.(\d{{1,4}})\.", name) for name in shapes]
        return max((1 + int(number[1]) for number in numbers if number), default=0)

    vocabulary, text_width = shape("text/token_embedding/embedding", 2)
    text = {
        "embed_dim": shape("text/proj/kernel", 2)[0 if layout.name == "hugging_face" else 1],
        "text_width": text_width,
        "text_layers": count("text/blocks_0/ln_1/scale"),
        "vocabulary": vocabulary,
        "context": shape("text/pos_embedding", 2)[0],
    }
    if layout.foreign("image/stem/conv3/kernel")[0] in shapes:
        stages = tuple(count(f"image/layer{stage}_0/conv1/kernel") for stage in (1, 2, 3, 4))
        side = math.isqrt(shape("image/attnpool/pos_embedding", 2)[0] - 1)
        width = shape("image/stem/conv3/kernel", 4)[0]
        return Sizes(image_size=32 * side, image_width=width, image_layers=stages, patch=None, **text)
    width, _, _, patch = shape("image/patch_embed/kernel", 4)
    side = math.isqrt(shape("image/pos_embedding", 2)[0] - 1)
    layers = count("image/blocks_0/ln_1/scale")
    return Sizes(image_size=patch * side, image_width=width, image_layers=layers, patch=patch, **text)


def from_foreign(arrays: Mapping[str, Any], clip: CLIP, *, source: str) -> dict[str, Any]:
    """Return the parameters of `clip`, as `clip.init` makes them, with the numbers of a file's arrays.

    Args:
      arrays: by the names of any layout; a prefix `module.` is passed over, as are counters and position ids.
      clip: the model, of the file's architecture.
      source: the file's name, for messages.

    Raises:
      InputError: none of the layouts; another architecture; missing or surplus names; a shape that differs; or no
        floating-point numbers.
    """
    layout, arrays = detect(arrays, source)
    _check_architecture(architecture(arrays, source), clip.sizes, source)
    wanted = flatten(jax.eval_shape(clip.init, jax.random.key(0)))
    places = {path: layout.foreign(path) for path in wanted}
    expected = {name for name, _ in places.values()}
    missing, surplus = sorted(expected - set(arrays)), sorted(set(arrays) - expected)
    found = [f"lacks {some(missing)}"] if missing else []
    found += [f"has the surplus {some(surplus)}"] if surplus else []
    if found:
        raise InputError(f"{source} ({layout.name} layout) {' and '.join(found)}: expected exactly this model's arrays")
    leaves = {}
    for path, leaf in wanted.items():
        name, third = places[path]
        flat, axes = _order(path, leaf.shape, layout)
        shape = tuple(flat[axis] for axis in axes)
        array = np.asarray(arrays[name])
        whole = shape if third is None else (3 * shape[0], *shape[1:])
        if array.shape != whole:
            raise InputError(
                f"{source}: {name} has shape {array.shape}, expected {whole}: the file is of another model"
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(f"{source}: {name} has dtype {array.dtype}, expected floating point")
        if third is not None:
            array = array[third * shape[0] : (third + 1) * shape[0]]
        leaves[path] = array.transpose(np.argsort(axes)).reshape(leaf.shape).astype(leaf.dtype)
    return unflatten(leaves)


def to_foreign(params: Mapping[str, Any], layout: str = "openai") -> dict[str, np.ndarray]:
    """Return parameters under the names and axis orders of a layout; the inverse of `from_foreign`, to the bit.

    Raises:
      InputError: an unknown layout, or a ResNet for Hugging Face's.
    """
    if layout not in LAYOUTS:
        raise unknown("layout of CLIP's weights", layout, LAYOUTS)
    if layout == "hugging_face" and "patch_embed" not in params["image"]:
        raise InputError("the layout hugging_face has no ResNet image tower: expected openai or open_clip_text")
    thirds: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten(params).items():
        array = np.asarray(leaf)
        name, third = LAYOUTS[layout].foreign(path)
        flat, axes = _order(path, array.shape, LAYOUTS[layout])
        thirds.setdefault(name, {})[third or 0] = array.reshape(flat).transpose(axes)
    return {
        name: np.array(np.concatenate([parts[i] for i in range(3)]) if len(parts) == 3 else parts[0], order="C")
        for name, parts in thirds.items()
    }


def load(path: str | pathlib.Path, clip: CLIP) -> dict[str, Any]:
    """Return the parameters of `clip` with the numbers of a .safetensors, .npz, .pt or .pth file; nothing is unpickled.

    Raises:
      InputError: the file cannot be read, or as `from_foreign`.
    """
    arrays, _ = arrays_file.read(path)
    return jax.tree.map(jnp.asarray, from_foreign(arrays, clip, source=str(path)))


def write(path: str | pathlib.Path, params: Mapping[str, Any], layout: str = "openai") -> None:
    """Write parameters as .safetensors under the names of a layout, for PyTorch.

    Raises:
      InputError: as `to_foreign`; another ending, or a folder that cannot be written.
    """
    arrays_file.write(pathlib.Path(path), to_foreign(params, layout), {"format": "pt", "layout": layout})


def _order(path: str, shape: tuple[int, ...], layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of an own leaf with its heads not apart, and that shape's axes in PyTorch's order."""
    module, _, leaf = path.rpartition("/")
    layer = module.rpartition("/")[2]
    if layer in ("query", "key", "value"):
        shape = (*shape[:-2], shape[-2] * shape[-1])
    elif layer == "out" and leaf == "kernel":
        shape = (shape[0] * shape[1], shape[2])
    axes = tuple(range(len(shape)))
    if leaf == "kernel" and (layer != "proj" or layout.name == "hugging_face"):
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}[len(shape)]
    return shape, axes


def _check_architecture(found: Sizes, expected: Sizes, source: str) -> None:
    """Raise InputError where two models differ in more than their heads, and name both."""

    def record(sizes: Sizes) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(sizes).items() if not k.endswith("_heads")}

    def title(sizes: Sizes) -> str:
        return next((name for name, known in ARCHITECTURES.items() if record(known) == record(sizes)), "another model")

    theirs, ours = record(found), record(expected)
    if theirs != ours:
        fields = [f"{name} {theirs[name]} and not {ours[name]}" for name in theirs if theirs[name] != ours[name]]
        raise InputError(
            f"{source} holds {title(found)}, this model is {title(expected)}: the file has {', '.join(fields)}"
        )
