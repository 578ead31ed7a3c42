"""CLIP in PyTorch, as its users write it. Imported only where PyTorch is installed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jrobust.models.clip.architectures import Sizes
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.weights.clip_layouts import to_foreign

# PyTorch's own names of what a block of CLIP's files is made of.
_RENAMED = {"attn": "self_attn", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2", "ln_1": "norm1", "ln_2": "norm2"}


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _blocks(width: int, layers: int, heads: int) -> nn.ModuleList:
    block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, _quick_gelu, batch_first=True, norm_first=True)
    return nn.ModuleList(copy.deepcopy(block) for _ in range(layers))


def _written_out(block: Any, x: torch.Tensor, attentions: list[torch.Tensor]) -> torch.Tensor:
    """Return what a block makes of tokens [B, T, D], and append its probabilities [B, heads, T, T]."""
    own = block.self_attn
    joint = F.linear(block.norm1(x), own.in_proj_weight, own.in_proj_bias)
    q, k, v = joint.unflatten(-1, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attentions.append((q @ k.transpose(-1, -2) * own.head_dim**-0.5).softmax(-1))
    x = x + own.out_proj((attentions[-1] @ v).transpose(1, 2).flatten(2))
    return x + block.linear2(_quick_gelu(block.linear1(block.norm2(x))))


class CLIP(nn.Module):
    """Both towers with a ViT, for images of its size: QuickGELU."""

    mean: torch.Tensor
    std: torch.Tensor
    mask: torch.Tensor

    def __init__(self, sizes: Sizes, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        assert isinstance(sizes.image_layers, int) and sizes.patch is not None
        width, patches = sizes.image_width, (sizes.image_size // sizes.patch) ** 2
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64)[:, None, None])
        self.register_buffer("mask", torch.full((sizes.context, sizes.context), -torch.inf).triu(1))
        self.conv1 = nn.Conv2d(3, width, sizes.patch, sizes.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.image_positions = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.image_blocks = _blocks(width, sizes.image_layers, sizes.image_heads)
        self.proj = nn.Parameter(torch.empty(width, sizes.embed_dim))

        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.text_width)
        self.text_positions = nn.Parameter(torch.empty(sizes.context, sizes.text_width))
        self.text_blocks = _blocks(sizes.text_width, sizes.text_layers, sizes.text_heads)
        self.ln_final = nn.LayerNorm(sizes.text_width)
        self.text_projection = nn.Parameter(torch.empty(sizes.text_width, sizes.embed_dim))

    def image_features(self, x: torch.Tensor, attentions: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Return features [B, E] of images [B, 3, n, n] in [0, 1]; a list gets each block's attention probabilities."""
        x = self.conv1((x - self.mean) / self.std).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.image_positions
        x = self.ln_pre(x)
        for block in self.image_blocks:
            x = block(x) if attentions is None else _written_out(block, x, attentions)
        return self.ln_post(x[:, 0]) @ self.proj

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return unit features [K, E] of ids [K, T], the largest of a row being its end."""
        x = self.token_embedding(tokens) + self.text_positions
        for block in self.text_blocks:
            x = block(x, src_mask=self.mask)
        x = self.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(1)]
        return F.normalize(x @ self.text_projection, dim=-1)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the cosines [B, K], which are the logits of the public code."""
        return F.normalize(self.image_features(x), dim=-1) @ self.encode_text(tokens).T


def port(params: Mapping[str, Any], sizes: Sizes, mean: tuple[float, ...], std: tuple[float, ...]) -> CLIP:
    """Return the same CLIP in PyTorch; its text tower has no gradients."""
    arrays = to_foreign(params)
    whole = {
        "conv1.weight": "visual.conv1.weight",
        "class_embedding": "visual.class_embedding",
        "image_positions": "visual.positional_embedding",
        "proj": "visual.proj",
        "text_positions": "positional_embedding",
    }

    def source(name: str) -> str:
        if name in whole:
            return whole[name]
        if name.startswith(("ln_pre", "ln_post")):
            return f"visual.{name}"
        for theirs, ours in _RENAMED.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        name = name.replace("image_blocks", "visual.transformer.resblocks")
        return name.replace("text_blocks", "transformer.resblocks")

    model = CLIP(sizes, mean, std).to(torch.tensor(arrays["visual.proj"]).dtype)
    buffers = dict(model.named_buffers())
    state = {
        name: buffers[name] if name in buffers else torch.tensor(np.asarray(arrays[source(name)]))
        for name in model.state_dict()
    }
    model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(("text_", "token_", "ln_final")))
    return model


class ZeroShotCLIP(nn.Module):
    """The image tower before fixed texts."""

    texts: torch.Tensor

    def __init__(self, model: CLIP, texts: torch.Tensor, scale: float):
        super().__init__()
        self.model, self.scale = model, scale
        self.register_buffer("texts", texts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of images [B, 3, n, n] in [0, 1]."""
        return self.scale * (F.normalize(self.model.image_features(images), dim=-1) @ self.texts.T)


def port_zero_shot(network: ZeroShot, params: Any, state: Any) -> ZeroShotCLIP | None:
    """Return the same classifier with the same numbers, in inference mode; None for a ResNet."""
    clip = network.clip
    if clip.sizes.patch is None:
        return None
    whole = jax.device_get(clip.init(jax.random.key(0))) | {"image": params}  # of the text tower nothing is used
    texts = torch.tensor(np.array(state["text"].value))
    scale = float(np.exp(state["logit_scale"].value)) if network.scaled else 1.0
    model = ZeroShotCLIP(port(whole, clip.sizes, network.mean, network.std), texts, scale)
    return model.eval().requires_grad_(False)
