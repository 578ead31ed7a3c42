"""Checkpoints derived from CLIP as PyTorch writes them, and our image towers in PyTorch's networks."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402
from torch import nn  # noqa: E402

from jrobust.models.clip import CLIP, Sizes  # noqa: E402
from jrobust.models.clip.zero_shot import PromptSizes  # noqa: E402
from jrobust.weights.clip_towers import ImageTower, load_image_tower, write_image_tower  # noqa: E402
from tests.parity.clip_networks import TorchCLIP, our_tree, single  # noqa: E402

TEXT = {"text_width": 64, "text_layers": 1, "vocabulary": 20, "context": 7}
CASES = {"vit": Sizes(8, 16, 128, 2, 8, **TEXT), "resnet": Sizes(8, 64, 4, (1, 2, 1, 1), None, **TEXT)}


@pytest.fixture(params=list(CASES), scope="module")
def model(request):
    """PyTorch's network, our model, and its numbers without texts as our tree."""
    network = single(CASES[request.param])
    tree = our_tree(network, CASES[request.param])
    return network, CLIP(CASES[request.param]), {k: tree[k] for k in ("image", "batch_stats") if k in tree}


class Wrapped(nn.Module):
    """What a data-parallel wrapper makes of names."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class Prompter(nn.Module):
    """A frame around the image, under the names of TeCoA's code."""

    def __init__(self, side, width):
        super().__init__()
        inner = side - 2 * width
        self.pad_up, self.pad_down = (nn.Parameter(torch.randn(1, 3, width, side)) for _ in range(2))
        self.pad_left, self.pad_right = (nn.Parameter(torch.randn(1, 3, inner, width)) for _ in range(2))

    def frame(self):
        inner = self.pad_left.shape[2]
        middle = torch.cat([self.pad_left, torch.zeros(1, 3, inner, inner), self.pad_right], dim=3)
        return torch.cat([self.pad_up, middle, self.pad_down], dim=2)[0]


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def trained(*modules):
    """The state of an optimizer after a step."""
    optimizer = torch.optim.SGD([p for module in modules for p in module.parameters()], 40.0, momentum=0.9)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {"epoch": 3, "best_acc1": torch.tensor(31.5), "optimizer": optimizer.state_dict()}


def test_a_checkpoint_of_tecoa_without_prompts(model, tmp_path):
    network, clip, expected = model
    content = trained(network.visual) | {"state_dict": Wrapped(nn.Module()).state_dict(), "add_prompter": {}}
    torch.save(content | {"vision_encoder_state_dict": network.visual.state_dict()}, tmp_path / "model_best.pth.tar")
    found = load_image_tower(tmp_path / "model_best.pth.tar", clip)
    equal(found.params, expected)
    assert found.prompts is None and found.head is None


def test_prompted_features(tmp_path):
    sizes = CASES["vit"]
    network, clip = single(sizes), CLIP(sizes)
    prompter, tokens = Prompter(16, 3), nn.Module()
    tokens.prompt = nn.Parameter(torch.randn(1, 5, 128))
    content = trained(prompter, tokens) | {"vision_encoder_state_dict": network.visual.state_dict()}
    content |= {"state_dict": Wrapped(prompter).state_dict(), "add_prompter": Wrapped(tokens).state_dict()}
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    found = load_image_tower(tmp_path / "checkpoint.pth.tar", clip)
    fresh = PromptSizes("border", 3, 5).init(jax.random.key(0), sizes)
    assert jax.tree.map(np.shape, found.prompts) == jax.tree.map(np.shape, fresh)
    images = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    torch_prompts = fresh._replace(pixels=prompter.frame().permute(1, 2, 0), tokens=tokens.prompt[0])
    with torch.no_grad():
        expected = network.encode_image(torch.from_numpy(images), 16, torch_prompts).numpy()
    run = jax.jit(lambda tower, x: clip.image_features(tower.params, x, prompts=tower.prompts))
    np.testing.assert_allclose(run(found, images), expected, atol=1e-5 * np.abs(expected).max())


def test_networks_with_heads_both_ways(model, tmp_path):
    network, clip, expected = model
    head = nn.Linear(8, 3)
    ours = {"kernel": head.weight.detach().numpy().T, "bias": head.bias.detach().numpy()}
    masked, soup = nn.Module(), nn.Module()
    masked.backbone, masked.classifier = network.visual, head
    soup.model, soup.classification_head = network, head
    forms = {"masked_images": (masked, lambda s: trained(masked) | {"model": s}), "model_soups": (soup, lambda s: s)}
    for form, (module, content) in forms.items():
        torch.save(content(module.state_dict()), tmp_path / "a.pt")
        found = load_image_tower(tmp_path / "a.pt", clip)
        equal(found.params, expected)
        equal(found.head, ours)
        write_image_tower(tmp_path / "a.safetensors", found, form)
        state = safetensors.torch.load_file(tmp_path / "a.safetensors")
        whole = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
        texts = {f"model.{name}" for name in network.state_dict() if not name.startswith("visual.")}
        assert set(state) == whole - texts
        assert all(torch.equal(state[name], module.state_dict()[name]) for name in state)


def test_written_towers_load_strictly_into_pytorch(model, tmp_path):
    network, clip, expected = model
    path = tmp_path / "tower.safetensors"
    twin = TorchCLIP(clip.sizes).float()
    write_image_tower(path, ImageTower(expected), "tecoa")
    twin.visual.load_state_dict(safetensors.torch.load_file(path), strict=True)
    for name, value in network.visual.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(twin.visual.state_dict()[name], value), name
    write_image_tower(path, ImageTower(expected))
    other = TorchCLIP(clip.sizes).float()
    missing, surplus = other.load_state_dict(safetensors.torch.load_file(path), strict=False)
    assert not surplus and not any(n.startswith("visual.") and not n.endswith("num_batches_tracked") for n in missing)
