import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions import grad_cam
from jrobust.models import zoo
from jrobust.weights.torch_layouts import to_torch
from tests.parity import networks

torch = pytest.importorskip("torch")


def test_grad_cam_is_that_of_autograd():
    """Against PyTorch's gradient of the logit with respect to the last map, kept with `retain_grad`."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    with jax.enable_x64(True):
        section = {"name": "small_cnn", "width": 6, "dtype": "float64"}
        classifier = zoo.build(section, num_classes=10, input_shape=(8, 8, 3), mean=mean, std=std)
        variables = classifier.init(jax.random.key(0, impl="rbg"))
        rng = np.random.default_rng(1)
        variables = jax.tree.map(lambda a: jnp.asarray(np.asarray(a) + 0.3 * rng.uniform(size=a.shape)), variables)
        images, classes = rng.uniform(size=(4, 8, 8, 3)), np.array([3, 0, 9, 3])
        ours = jax.jit(lambda v, x, c: grad_cam(lambda p: classifier.logits_and_map(v, x, p), c, (8, 8)))
        found = np.asarray(ours(variables, jnp.asarray(images), jnp.asarray(classes)))

    net = networks.TorchCNN(6, mean, std).double().eval()
    state = {name: torch.tensor(np.asarray(array)) for name, array in to_torch(*variables).items()}
    net.load_state_dict(state, strict=False)
    x = (networks.nchw(images) - net.mean) / net.std
    for conv, norm in ((net.conv1, net.bn1), (net.conv2, net.bn2), (net.conv3, net.bn3)):
        x = torch.relu(norm(conv(x)))
    x.retain_grad()
    net.fc(x.mean((2, 3))).gather(1, torch.tensor(classes)[:, None]).sum().backward()
    cam = torch.relu((x.grad.mean((2, 3), keepdim=True) * x).sum(1, keepdim=True))
    cam = torch.nn.functional.interpolate(cam, size=(8, 8), mode="bilinear", align_corners=False)[:, 0].detach().numpy()
    cam -= cam.min((1, 2), keepdims=True)
    spread = cam.max((1, 2), keepdims=True)
    assert (spread > 0).sum() >= 2  # some evidence to compare
    np.testing.assert_allclose(found, cam / np.where(spread > 0, spread, 1), atol=1e-10)
