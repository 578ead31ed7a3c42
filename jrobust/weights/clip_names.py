"""The names and axis orders that others give CLIP's weights.

| layout | files |
|---|---|
| openai | OpenAI's archives, and open_clip's models of its class CLIP |
| open_clip_text | open_clip's models with a text tower of their own, whose names begin with `text.` |
| hugging_face | transformers' CLIPModel; vision transformers only |

The own tree is that of `jrobust.models.clip`. Of PyTorch's arrays, convolutions are OIHW and linear weights
(out, in), and heads are not apart; in the first two layouts query, key and value are the thirds of one matrix, and the
two projections into the joint space are (in, out).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jrobust.errors import InputError
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


def order(path: str, shape: tuple[int, ...], layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
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
