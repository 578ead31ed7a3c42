import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.training import parallel
from jrobust.training.accuracy import make_accuracy


def batches():
    """Images whose class is their first pixel, one of them labelled wrongly; the padding would be right and wrong."""
    image = np.zeros((5, 2, 2, 1), np.float32)
    image[:, 0, 0, 0] = [0, 1, 2, 0, 1]
    yield {"image": image, "label": np.array([0, 1, 1, 0, 0], np.int32), "valid": np.array([1, 1, 1, 0, 0], bool)}
    yield {"image": image, "label": np.array([0, 0, 0, 0, 0], np.int32), "valid": np.array([1, 0, 0, 0, 0], bool)}


@pytest.mark.parametrize("devices", [1, 4])
def test_padding_does_not_count(devices):
    traces = []

    def logits(variables, images):
        traces.append(1)
        return variables["scale"] * (images[:, 0, 0, 0, None] == jnp.arange(3)).astype(jnp.float32)

    mesh = parallel.make_mesh(devices)
    accuracy = make_accuracy(logits, mesh)
    variables = parallel.parallelize(lambda *arguments: arguments, mesh).replicate({"scale": jnp.float32(1)})
    assert accuracy(variables, batches()) == 3 / 4
    assert accuracy(variables, batches()) == 3 / 4
    assert len(traces) == 1


def test_no_images():
    with pytest.raises(InputError, match="no image"):
        make_accuracy(lambda variables, images: images, parallel.make_mesh(1))({}, [])
