"""CLIP's weights from files that PyTorch writes, into our towers and back."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from jrobust.models.clip import CLIP, Sizes, similarity  # noqa: E402
from jrobust.weights import clip_layouts  # noqa: E402
from tests.parity.clip_networks import TorchCLIP, our_tree, single  # noqa: E402

TEXT = {"text_width": 64, "text_layers": 2, "vocabulary": 20, "context": 7}
CASES = {"vit": Sizes(8, 16, 128, 2, 8, **TEXT), "resnet": Sizes(8, 64, 4, (1, 2, 1, 1), None, **TEXT)}
TOKENS = np.array([[18, 3, 19, 0, 0, 0, 0], [18, 9, 4, 8, 1, 2, 19]], np.int32)


@pytest.fixture(params=list(CASES), scope="module")
def network(request):
    return single(CASES[request.param]), CASES[request.param]


def save(network, path, kind):
    """Write as state_dict, as the checkpoint of a wrapped network, or as OpenAI writes its archives."""
    state = network.state_dict()
    if kind == "state_dict":
        torch.save(state, path)
    elif kind == "checkpoint":
        torch.save({"epoch": 1, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        network.register_buffer("input_resolution", torch.tensor(16))
        with torch.no_grad():
            script = torch.jit.trace_module(
                network, {"encode_text": torch.from_numpy(TOKENS).long()}, check_trace=False
            )
        del network.input_resolution
        assert "input_resolution" in script.state_dict()
        torch.jit.save(script, path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["state_dict", "checkpoint", "script"])
def test_files_of_pytorch(network, tmp_path, kind):
    network, sizes = network
    save(network, tmp_path / "clip.pt", kind)
    params = clip_layouts.load(tmp_path / "clip.pt", CLIP(sizes))
    jax.tree.map(np.testing.assert_array_equal, params, our_tree(network, sizes))


def test_logits_of_half_precision_weights(network, tmp_path):
    network, sizes = network
    state = {name: value.half() if value.ndim > 1 else value for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "clip.pt")
    network.load_state_dict(state)
    clip = CLIP(sizes)
    params = clip_layouts.load(tmp_path / "clip.pt", clip)
    side = sizes.image_size
    images = np.random.default_rng(0).uniform(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        image = functional.normalize(network.encode_image(torch.from_numpy(images), side), dim=1)
        text = functional.normalize(network.encode_text(torch.from_numpy(TOKENS).long()), dim=1)
        expected = (network.logit_scale.exp() * image @ text.T).numpy()
    run = jax.jit(lambda p, x, t: similarity(clip.image_features(p, x), clip.text_features(p, t), p["logit_scale"]))
    found = run(params, images, TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_written_names_load_into_pytorch(network):
    network, sizes = network
    state = clip_layouts.to_foreign(our_tree(network, sizes))
    twin = TorchCLIP(sizes).float()
    missing, surplus = twin.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    assert not surplus and all(name.endswith("num_batches_tracked") for name in missing)
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(twin.state_dict()[name], value), name
