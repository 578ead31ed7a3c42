"""The FSR module against numbers that the released modules gave in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.models import fsr
from jrobust.models.fsr import FSR, Separation

# Golden values: C=4, 3x3, hidden 6, K=5, B=2, tau 0.1, weights from sines, made by the released modules in float64.
# Columns: mean mask and running statistics; sampled mask and running statistics; sampled mask and batch statistics.
GOLDEN = {
    "mask": (31.8491325630, 35.5711312008, 33.4292038496),
    "robust": (21.0553178975, 22.5436021424, 20.9063817779),
    "non_robust": (24.3171798396, 22.8288955947, 24.4661159593),
    "recalibrated": (10.9776024799, 14.0231875721, 9.1469771031),
    "ce": (2.24321919, 2.52188389, 2.21209727),
    "ce_robust": (2.14980247, 2.25681838, 2.15801987),
    "ce_non_robust": (1.02951705, 1.03643501, 0.99161316),
    "ce_recalibrated": (1.83638639, 1.93207929, 1.77848767),
    "total": (7.25892510, 7.74721656, 7.14021797),
    "gradient_norm": (4.82936463, 1.46045280, 1.92375664),
    "gradient_sum": (4.47066267, 4.31301228, 3.47998652),
}
GOLDEN_MASK = [
    0.41498649,
    0.72413996,
    0.88677306,
    0.97280229,
    0.99834099,
    0.99503086,
    0.86747489,
    0.90975371,
    0.7920837,
]
GOLDEN_LOGITS = [
    [1.88344676, 0.79445256, -2.13568194, -1.08141059, 1.58131557],
    [0.89641993, 0.41677323, -1.12659900, -0.76266073, 0.55361794],
]
BATCH, CHANNELS, SIDE, HIDDEN, CLASSES = 2, 4, 3, 6, 5


def wave(shape, function, phase, rate):
    return function(phase + rate * np.arange(np.prod(shape))).reshape(shape)


def golden_variables():
    """Variables of the module, from formulas over PyTorch's axis orders."""

    def net(phase):
        params, stats = {}, {}
        for i, (out, into) in enumerate(((HIDDEN, CHANNELS), (HIDDEN, HIDDEN), (CHANNELS, HIDDEN))):
            weight = 0.5 * wave((out, into, 3, 3), np.sin, phase + i, 0.37)
            params[f"conv{i}"] = {"kernel": weight.transpose(2, 3, 1, 0)}
        for i in range(2):
            params[f"bn{i}"] = {"scale": np.ones(HIDDEN), "bias": np.zeros(HIDDEN)}
            stats[f"bn{i}"] = {"mean": np.zeros(HIDDEN), "var": np.ones(HIDDEN)}
        return params, stats

    (sep, sep_stats), (rec, rec_stats) = net(0.1), net(0.6)
    head = {"kernel": wave((CLASSES, CHANNELS), np.cos, 0, 0.3).T, "bias": 0.1 * np.arange(CLASSES)}
    return {"params": {"sep": sep, "rec": rec, "aux": head}, "batch_stats": {"sep": sep_stats, "rec": rec_stats}}


@pytest.mark.parametrize(
    ("column", "mask_mode", "train"), [(0, "mean", False), (1, "sample", False), (2, "sample", True)]
)
def test_golden_values(monkeypatch, column, mask_mode, train):
    nhwc = lambda x: x.reshape(BATCH, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    shape = (BATCH * CHANNELS * SIDE * SIDE,)
    drawn = [nhwc(0.5 + 0.49 * wave(shape, np.sin, phase, 0.9)) for phase in (1, 2)]  # u1, u0
    monkeypatch.setattr(fsr, "uniforms", lambda *_: jnp.stack(drawn, 1))
    with jax.enable_x64(True):
        module = FSR(CLASSES, Separation(hidden=HIDDEN), "float64")
        variables = jax.tree.map(jnp.asarray, golden_variables())
        f = jnp.asarray(nhwc(np.abs(wave(shape, np.sin, 0.2, 0.53))))
        weight, bias = wave((CLASSES, CHANNELS), np.sin, 0.5, 0.4).T, -0.1 * np.arange(CLASSES)
        labels = jnp.array([1, 3])

        @functools.partial(jax.value_and_grad, has_aux=True)
        def run(f):
            (out, aux), _ = module.apply(variables, f, train=train, mask_mode=mask_mode, mutable=["batch_stats"])
            logits = out.mean((1, 2)) @ weight + bias
            wrong = jnp.argmax(jnp.where(jax.nn.one_hot(labels, CLASSES) > 0, -jnp.inf, logits), -1)
            ce = lambda z, y: -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(BATCH), y])
            terms = {
                "ce": ce(logits, labels),
                "ce_robust": ce(aux.robust, labels),
                "ce_non_robust": ce(aux.non_robust, wrong),
                "ce_recalibrated": ce(aux.recalibrated, labels),
            }
            maps = {"mask": aux.mask, "robust": aux.mask * f, "non_robust": (1 - aux.mask) * f}
            maps["recalibrated"] = out - aux.mask * f
            sums = {name: jnp.sum(value) for name, value in maps.items()}
            return sum(terms.values()), (terms | sums, aux.mask, logits, wrong)

        (total, (found, mask, logits, wrong)), gradient = jax.jit(run)(f)
    gradient = np.asarray(gradient)
    found |= {"total": total, "gradient_norm": np.linalg.norm(gradient), "gradient_sum": np.sum(gradient)}
    assert set(found) == set(GOLDEN)
    for name, expected in GOLDEN.items():
        np.testing.assert_allclose(found[name], expected[column], rtol=0, atol=1e-8, err_msg=name)
    np.testing.assert_array_equal(wrong, [0, 0])
    if column == 0:
        np.testing.assert_allclose(mask[0, :, :, 0].reshape(-1), GOLDEN_MASK, atol=1e-8)
        np.testing.assert_allclose(logits, GOLDEN_LOGITS, atol=1e-8)
