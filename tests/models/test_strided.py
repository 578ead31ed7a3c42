import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.models import strided
from jrobust.models.classifier import Classifier
from jrobust.models.resnet import ResNet
from jrobust.models.small_cnn import SmallCNN
from jrobust.models.wide_resnet import WideResNet

NETWORKS = [
    ResNet(3, stages=(1, 1), width=8, stem="cifar"),
    ResNet(3, stages=(1, 1), width=8, bottleneck=True),
    WideResNet(3, depth=10, width=2),
    SmallCNN(3, width=4),
]


def library(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=strided.DIMENSIONS)


def derivatives(convolve, strides, padding):
    """Value, both gradients, both gradients of each of them, and a derivative in forward over reverse mode."""
    convolve = functools.partial(convolve, strides=strides, padding=padding)

    def first(x, kernel, out):
        return jax.vjp(convolve, x, kernel)[1](out)

    def all_of(x, kernel, out, dx, dkernel):
        found, back = jax.vjp(first, x, kernel, out)
        forward = jax.jvp(functools.partial(first, out=out), (x, kernel), (dx, dkernel))[1]
        return convolve(x, kernel), found, back((dx, dkernel)), forward

    return jax.jit(all_of)


@pytest.mark.parametrize(
    ("size", "taps", "strides", "padding"),
    [
        ((6, 6), 3, (2, 2), ((1, 1), (1, 1))),
        ((7, 6), 3, (2, 2), ((1, 1), (1, 1))),
        ((6, 5), 1, (2, 2), ((0, 0), (0, 0))),
        ((9, 8), 7, (2, 2), ((3, 3), (3, 3))),
        ((8, 7), 3, (3, 2), ((0, 2), (1, 0))),
    ],
)
def test_equals_the_library_with_all_derivatives(size, taps, strides, padding):
    rng = np.random.default_rng(0)
    shapes = (2, *size, 3), (taps, taps, 3, 4)
    with jax.enable_x64(True):
        x, kernel, dx, dkernel = (jnp.asarray(rng.normal(size=shape)) for shape in shapes * 2)
        out = jnp.asarray(rng.normal(size=library(x, kernel, strides, padding).shape))
        expected, found = (
            derivatives(f, strides, padding)(x, kernel, out, dx, dkernel) for f in (library, strided.convolve)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)


def test_the_gradient_of_a_gradient_has_no_reversed_window_on_a_cpu():
    """What `strided` is for; if the library's form has none either, it has served its time."""
    x, out = jnp.ones((2, 8, 8, 4)), jnp.ones((2, 4, 4, 4))

    def program(convolve):
        pull = lambda k: jax.vjp(lambda x: convolve(x, k, (2, 2), ((1, 1), (1, 1))), x)[1](out)[0]
        return jax.jit(lambda k, c: jax.vjp(pull, k)[1](c)[0]).lower(jnp.ones((3, 3, 4, 4)), x).compile().as_text()

    assert "rhs_reversal" in program(library)
    assert "rhs_reversal" not in program(strided.convolve)


def strides(classifier, beta):
    shapes = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32)
    text = str(jax.make_jaxpr(lambda v, x: classifier.apply(*v, x, train=True, beta=beta).logits)(shapes, images))
    assert "window_strides=(1, 1)" in text
    return "window_strides=(2, 2)" in text


@pytest.mark.parametrize("module", NETWORKS, ids=lambda module: type(module).__name__)
def test_only_path_p_on_a_cpu_takes_strides_apart(module, monkeypatch):
    classifier = Classifier(module, (0.5,) * 3, (0.2,) * 3, 3, (16, 16, 3))
    assert strides(classifier, None)
    assert strides(classifier, 50.0) == (jax.default_backend() != "cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert strides(classifier, 50.0)
