"""CLIP in PyTorch, under the original's names, and its numbers as our tree."""

import numpy as np
import pytest

from jrobust.models.tree import unflatten

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Blocks(nn.Module):
    """Residual attention blocks over tokens [T, B, D], under the original's names."""

    def __init__(self, width, layers, heads, activation, mask=None):
        super().__init__()
        self.resblocks, self.mask = nn.ModuleList(), mask
        for _ in range(layers):
            block = nn.Module()
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn = nn.MultiheadAttention(width, heads)
            block.mlp = nn.Sequential()
            block.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
            block.mlp.add_module("gelu", activation())
            block.mlp.add_module("c_proj", nn.Linear(4 * width, width))
            self.resblocks.append(block)

    def forward(self, x):
        for block in self.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
            x = x + block.mlp(block.ln_2(x))
        return x


class TorchViT(nn.Module):
    def __init__(self, s, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, s.image_width, s.patch, s.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(s.image_width))
        self.positional_embedding = nn.Parameter(torch.randn((s.image_size // s.patch) ** 2 + 1, s.image_width))
        self.ln_pre, self.ln_post = nn.LayerNorm(s.image_width), nn.LayerNorm(s.image_width)
        self.transformer = Blocks(s.image_width, s.image_layers, s.image_heads, activation)
        self.proj = nn.Parameter(torch.randn(s.image_width, s.embed_dim))

    def forward(self, x, prompts=None):
        x = self.conv1(x).flatten(2).permute(2, 0, 1)
        x = torch.cat([self.class_embedding.expand(1, x.shape[1], -1), x]) + self.positional_embedding[:, None]
        if prompts is not None:
            x = torch.cat([x, prompts[:, None].expand(-1, x.shape[1], -1)])
        return self.ln_post(self.transformer(self.ln_pre(x))[0]) @ self.proj


class TorchBottleneck(nn.Module):
    def __init__(self, c_in, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.pool, self.downsample = nn.AvgPool2d(stride), None
        if stride > 1 or c_in != 4 * planes:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        out = self.bn1(self.conv1(x)).relu()
        out = self.pool(self.bn2(self.conv2(out)).relu())
        return (self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(self.pool(x)))).relu()


class TorchPool(nn.Module):
    def __init__(self, cells, width, heads, embed_dim):
        super().__init__()
        self.positional_embedding, self.heads = nn.Parameter(torch.randn(cells + 1, width)), heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
        biases = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        return functional.multi_head_attention_forward(
            *(x[:1], x, x, x.shape[-1], self.heads, None, biases, None, None, False, 0.0),
            *(self.c_proj.weight, self.c_proj.bias),
            training=False,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )[0].squeeze(0)


class TorchResNet(nn.Module):
    def __init__(self, s):
        super().__init__()
        w = s.image_width
        for i, (a, b) in enumerate([(3, w // 2), (w // 2, w // 2), (w // 2, w)], start=1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, 3, 2 if i == 1 else 1, 1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        c_in = w
        for i, blocks in enumerate(s.image_layers):
            layer = nn.Sequential()
            for j in range(blocks):
                layer.append(TorchBottleneck(c_in, w * 2**i, 2 if i > 0 and j == 0 else 1))
                c_in = 4 * w * 2**i
            self.add_module(f"layer{i + 1}", layer)
        self.attnpool = TorchPool((s.image_size // 32) ** 2, c_in, s.image_heads, s.embed_dim)

    def forward(self, x):
        for i in (1, 2, 3):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)).relu()
        x = functional.avg_pool2d(x, 2)
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class TorchCLIP(nn.Module):
    def __init__(self, s, activation=QuickGELU):
        super().__init__()
        self.visual = TorchViT(s, activation) if s.patch else TorchResNet(s)
        mask = torch.full((s.context, s.context), -torch.inf, dtype=torch.float64).triu(1)
        self.transformer = Blocks(s.text_width, s.text_layers, s.text_heads, activation, mask)
        self.token_embedding = nn.Embedding(s.vocabulary, s.text_width)
        self.positional_embedding = nn.Parameter(torch.randn(s.context, s.text_width))
        self.ln_final = nn.LayerNorm(s.text_width)
        self.text_projection = nn.Parameter(torch.randn(s.text_width, s.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(np.log(100.0)))

    def encode_image(self, x, size, prompts=None):
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=x.dtype).reshape(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=x.dtype).reshape(3, 1, 1)
        x = functional.interpolate(x.permute(0, 3, 1, 2), (size, size), mode="bicubic", align_corners=False)
        x = (x - mean) / std
        if prompts is None:
            return self.visual(x)
        return self.visual(x + prompts.pixels.permute(2, 0, 1), prompts.tokens)

    def encode_text(self, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x.permute(1, 0, 2))).permute(1, 0, 2)
        return x[torch.arange(len(tokens)), tokens.argmax(1)] @ self.text_projection


def single(s):
    """A network of float32 whose biases, norms and running statistics are away from their start."""
    torch.manual_seed(0)
    network = TorchCLIP(s).float().eval()
    network.transformer.mask = network.transformer.mask.float()
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and value.is_floating_point():
                value.add_(0.3 * torch.randn_like(value))
    return network


def blocks(state, prefix, ours, heads):
    """The leaves of the blocks under a prefix."""
    leaves, i = {}, 0
    while f"{prefix}.{i}.ln_1.weight" in state:
        old, new = f"{prefix}.{i}.", f"{ours}/blocks_{i}/"
        take = lambda name, old=old: state[old + name]
        for norm in ("ln_1", "ln_2"):
            leaves |= {f"{new}{norm}/scale": take(f"{norm}.weight"), f"{new}{norm}/bias": take(f"{norm}.bias")}
        width = len(take("ln_1.weight"))
        weights, biases = np.split(take("attn.in_proj_weight"), 3), np.split(take("attn.in_proj_bias"), 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            leaves[f"{new}attn/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            leaves[f"{new}attn/{name}/bias"] = bias.reshape(heads, -1)
        leaves[f"{new}attn/out/kernel"] = take("attn.out_proj.weight").T.reshape(heads, -1, width)
        leaves[f"{new}attn/out/bias"] = take("attn.out_proj.bias")
        for name, layer in (("c_fc", "fc1"), ("c_proj", "fc2")):
            leaves[f"{new}mlp/{layer}/kernel"] = take(f"mlp.{name}.weight").T
            leaves[f"{new}mlp/{layer}/bias"] = take(f"mlp.{name}.bias")
        i += 1
    return leaves


def resnet_leaves(state, heads):
    """The leaves of the ResNet tower, running statistics included."""
    leaves = {}
    for name, array in state.items():
        path, _, leaf = name.removeprefix("visual.").rpartition(".")
        if not name.startswith("visual.") or path.startswith("attnpool") or leaf == "num_batches_tracked":
            continue
        parts = path.replace("downsample.0", "down_conv").replace("downsample.1", "down_bn").split(".")
        place = f"stem/{parts[0]}" if len(parts) == 1 else f"{parts[0]}_{parts[1]}/{parts[2]}"
        if leaf.startswith("running_"):
            leaves[f"batch_stats/image/{place}/{leaf.removeprefix('running_')}"] = array
        elif array.ndim == 4:
            leaves[f"image/{place}/kernel"] = array.transpose(2, 3, 1, 0)
        else:
            leaves[f"image/{place}/{'scale' if leaf == 'weight' else 'bias'}"] = array
    pool = "visual.attnpool."
    leaves["image/attnpool/pos_embedding"] = state[f"{pool}positional_embedding"]
    for name, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        weight = state[f"{pool}{name}_proj.weight"]
        leaves[f"image/attnpool/{ours}/kernel"] = weight.T.reshape(len(weight), heads, -1)
        leaves[f"image/attnpool/{ours}/bias"] = state[f"{pool}{name}_proj.bias"].reshape(heads, -1)
    weight = state[f"{pool}c_proj.weight"]
    leaves["image/attnpool/out/kernel"] = weight.T.reshape(heads, -1, len(weight))
    leaves["image/attnpool/out/bias"] = state[f"{pool}c_proj.bias"]
    return leaves


def our_tree(network, s):
    """The network's numbers as our tree of parameters, leaf by leaf."""
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    leaves = blocks(state, "transformer.resblocks", "text", s.text_heads)
    same = {
        "text/token_embedding/embedding": "token_embedding.weight",
        "text/pos_embedding": "positional_embedding",
        "text/ln_final/scale": "ln_final.weight",
        "text/ln_final/bias": "ln_final.bias",
        "text/proj/kernel": "text_projection",
        "logit_scale": "logit_scale",
    }
    if s.patch:
        same["image/class_embedding"] = "visual.class_embedding"
        same |= {"image/pos_embedding": "visual.positional_embedding", "image/proj/kernel": "visual.proj"}
        for norm in ("ln_pre", "ln_post"):
            same |= {f"image/{norm}/scale": f"visual.{norm}.weight", f"image/{norm}/bias": f"visual.{norm}.bias"}
        leaves["image/patch_embed/kernel"] = state["visual.conv1.weight"].transpose(2, 3, 1, 0)
        leaves |= blocks(state, "visual.transformer.resblocks", "image", s.image_heads)
    else:
        leaves |= resnet_leaves(state, s.image_heads)
    return unflatten(leaves | {ours: state[theirs] for ours, theirs in same.items()})
