"""The two bicubic matrices: by hand, and what tells them from each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models.bicubic import FORMS, resize, resize_matrix


def test_doubling_by_hand():
    """w(1/4), w(3/4), w(5/4), w(7/4) are 225, 67, -27, -9 over 256; a tap before the border reads the border."""
    upper = np.array([[-9 + 67 + 225, -27, 0, 0], [-27 + 225, 67, -9, 0], [-9 + 67, 225, -27, 0], [-27, 225, 67, -9]])
    golden = np.concatenate([upper, upper[::-1, ::-1]]) / 256
    np.testing.assert_allclose(resize_matrix(4, 8), golden, atol=1e-12)


def test_halving_with_antialias_by_hand():
    """a = -1/2 and a kernel of twice the width, cut off at the border: 222, 58, -18 over what is left."""
    golden = np.array([[222, 222, 58, -18], [-18, 58, 222, 222]]) / 484
    np.testing.assert_allclose(resize_matrix(4, 2, "bicubic_antialias"), golden, atol=1e-12)
    np.testing.assert_allclose(resize_matrix(4, 2), np.array([[16, 19, -3, 0], [0, -3, 19, 16]]) / 32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [(32, 224), (64, 224), (300, 224), (7, 5), (1, 3), (2, 40)])
def test_rows_sum_to_one_and_the_matrix_is_symmetric_under_reflection(form, sizes):
    matrix = resize_matrix(*sizes, form)
    assert matrix.shape == sizes[::-1]
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-9)
    np.testing.assert_allclose(resize_matrix(sizes[0], sizes[0], form), np.eye(sizes[0]), atol=1e-12)


def test_which_of_them_jax_computes():
    images = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    forms = lambda x: (resize(x, 56), resize(x, 56, "bicubic_antialias"), jax.image.resize(x, (1, 56, 56, 3), "cubic"))
    torchs, pils, jaxs = map(np.asarray, jax.jit(forms)(images))
    assert 0.04 < np.abs(torchs - jaxs).max() < 0.12
    np.testing.assert_allclose(pils, jaxs, atol=1e-5)


def test_images_keep_their_axes_and_may_leave_the_range():
    images = np.zeros((2, 6, 4, 3), np.float32)
    images[1, 4, 1, 2] = 1
    out = np.asarray(jax.jit(lambda x: resize(x, 12))(images))
    assert out.shape == (2, 12, 12, 3) and out.dtype == jnp.float32
    assert not out[0].any() and not out[1, :, :, :2].any() and out.min() < -0.05
    rows, columns = resize_matrix(6, 12), resize_matrix(4, 12)
    np.testing.assert_allclose(out[1, :, :, 2], np.outer(rows[:, 4], columns[:, 1]), atol=1e-6)
    assert jax.eval_shape(lambda: resize(jnp.zeros((1, 4, 4, 3), jnp.bfloat16), 12)).dtype == jnp.float32
    np.testing.assert_array_equal(resize(out, 12), out)


def test_products_are_in_full_precision():
    jaxpr = jax.make_jaxpr(lambda x: resize(x, 8))(jnp.zeros((1, 4, 4, 3)))
    products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 2
    assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in products)


def test_unknown_form():
    with pytest.raises(InputError, match=r"unknown interpolation 'bicubik'.*did you mean 'bicubic'"):
        resize_matrix(4, 8, "bicubik")
