"""AT, TRADES and MART against golden values of their released code, closed forms and counts; see docs/fsr.md."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import loops, methods
from jrobust.attacks import cross_entropy, kl
from jrobust.errors import InputError
from jrobust.methods import mart, trades
from jrobust.methods.adversarial import Adversarial, near_start
from jrobust.methods.classes import negative_class
from jrobust.methods.mart import MART, boosted_cross_entropy, weighted_kl
from jrobust.methods.trades import TRADES
from jrobust.models import zoo
from jrobust.models.network import Prediction
from tests.attacks import toy
from tests.methods import networks

EPS, ALPHA, STEPS = 0.031, 0.007, 10
KEY = jax.random.key(0)
LABELS = jnp.array([7, 8, 7, 6, 9, 0, 8, 8, 7, 7, 6, 0, 9, 9, 7, 8])
KINDS = {
    "at": Adversarial,
    "trades": functools.partial(TRADES, kl_weight=6.0),
    "mart": functools.partial(MART, kl_weight=5.0),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def rolled(monkeypatch, request):
    """Rolled loops over attack steps, as on GPU, where there are no convolutions: they compile sooner."""
    if "small_cnn" not in request.fixturenames:
        monkeypatch.setattr(loops, "unrolled", bool)


@pytest.fixture
def small_cnn():
    return zoo.build({"name": "small_cnn", "width": 4}, num_classes=5, input_shape=(6, 6, 1), mean=(0.4,), std=(0.3,))


def mlp(params, z, beta):
    """W2 tanh(W1 z + b1) + b2, the weights of the attacks' toy."""
    w1, b1, w2, b2 = params
    return jnp.tanh(z @ w1.T + b1) @ w2.T + b2


def toy_params():
    w1 = toy.W1.reshape(32, 3, 8, 8).transpose(0, 2, 3, 1).reshape(32, -1)  # the toy counts by channel, row, column
    return tuple(jnp.asarray(value) for value in (w1, toy.B1, toy.W2, toy.B2))


TOY = networks.Toy(mlp, mean=0.5)
BATCH = {"label": LABELS, "index": jnp.arange(16)}


def batch():
    return BATCH | {"image": toy.images()}


def noise(images, key, index, scale):
    """The start of the golden values."""
    del key, index
    wave = np.sin(0.61 * np.arange(16 * 192) + 0.4).reshape(16, 3, 8, 8).transpose(0, 2, 3, 1)
    return images + scale * jnp.asarray(wave)


@pytest.mark.parametrize(
    ("method", "weight", "loss", "norms"),
    [
        (TRADES, 1.0, 2.1572015834, None),
        (TRADES, 6.0, 3.6968479411, (5.02601411, 0.94038217)),
        (MART, 5.0, 4.9438485078, None),
        (MART, 6.0, 5.1719525248, (6.39673191, 1.14439883)),
    ],
)
def test_golden_losses_and_gradients(monkeypatch, method, weight, loss, norms):
    """Sensitive to the direction of the KL, to a detached term, to a mean over classes, and to y* by other rules."""
    for module in (trades, mart):
        monkeypatch.setattr(module, "near_start", noise)
    total = method(TOY, EPS, ALPHA, STEPS, kl_weight=weight).loss
    (found, _), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(toy_params(), 0, batch(), KEY)
    assert found == pytest.approx(loss, abs=1e-9)
    if norms:
        assert [float(jnp.linalg.norm(gradient[i])) for i in (0, 2)] == pytest.approx(norms, abs=1e-8)


def test_the_target_of_the_kl_is_the_clean_prediction():
    method = TRADES(TOY, EPS, ALPHA, STEPS, kl_weight=2.0)
    loss, (_, metrics) = jax.jit(method.loss)(toy_params(), 0, batch(), KEY)

    @jax.jit
    def predictions():
        images = batch()["image"]
        start = near_start(images, jax.random.split(KEY, 4)[0], BATCH["index"], 0.001)
        adv = method.perturb(toy_params(), 0, images, start)
        return [jax.nn.softmax(toy.logits(x)) for x in (images, adv)]

    p, q = predictions()
    right, wrong = (float(jnp.sum(a * jnp.log(a / b), -1).mean()) for a, b in ((p, q), (q, p)))
    assert metrics["kl"] == pytest.approx(right, rel=1e-12) and abs(right - wrong) > 1e-2
    assert loss == pytest.approx(float(metrics["cross_entropy"]) + 2 * right, rel=1e-12)


def test_the_ascent_on_the_kl_starts_beside_the_image_where_it_has_a_gradient():
    images = batch()["image"]
    clean = toy.logits(images)
    start = jax.jit(lambda: near_start(images, KEY, BATCH["index"], 0.001))()
    slope = jax.jit(jax.grad(lambda x: kl(clean, toy.logits(x)).sum()))
    assert float(jnp.abs(slope(images)).max()) < 1e-12 < 1e-4 < float(jnp.abs(slope(start)).max())
    method = TRADES(TOY, EPS, ALPHA, STEPS, kl_weight=6.0)
    adv = jax.jit(method.perturb)(toy_params(), 0, images, start)
    before, after = (float(kl(clean, toy.logits(x)).mean()) for x in (start, adv))
    assert after > 1000 * before and float(jnp.abs(adv - images).max()) <= EPS + 1e-12


def test_the_start_is_gaussian_and_belongs_to_the_example():
    images = jnp.full((64, 8, 8, 3), 0.5)
    index = jnp.arange(64) + 3
    start = jax.jit(lambda x, i: near_start(x, KEY, i, 0.001))
    delta = start(images, index) - images
    assert float(delta.std()) == pytest.approx(0.001, rel=0.02) and abs(float(delta.mean())) < 3e-5
    assert float(jnp.abs(delta).max()) > 0.0035  # a uniform start has no tails
    np.testing.assert_array_equal(start(images[5:7], index[5:7]) - images[5:7], delta[5:7])


def test_boosted_cross_entropy_in_closed_form():
    logits, labels = jnp.array([[0.0, 100.0], [200.0, 0.0]]), jnp.array([0, 0])
    expected = [100 - np.log(0.0001 + 1e-12), -np.log(1.0001 + 1e-12)]
    np.testing.assert_allclose(jax.jit(boosted_cross_entropy)(logits, labels), expected, rtol=1e-11)
    z = jnp.log(jnp.array([[0.5, 0.2, 0.3]]))
    np.testing.assert_allclose(boosted_cross_entropy(z, jnp.array([0])), -np.log(0.5) - np.log(0.7001), rtol=1e-10)
    np.testing.assert_allclose(boosted_cross_entropy(z, jnp.array([1])), -np.log(0.2) - np.log(0.5001), rtol=1e-10)


def test_weighted_kl_in_closed_form():
    labels = jnp.array([0, 0])
    clean, adv = jnp.array([[0.0, 0.0], [2000.0, 0.0]]), jnp.array([[2000.0, 0.0], [0.0, 2000.0]])
    expected = [
        0.5000001 * (np.log(0.5) - 0.5 * np.log(1e-12) - 0.5 * np.log(1 + 1e-12)),
        1e-7 * -np.log(1e-12),  # surely right on x: next to nothing is asked of x'
    ]
    np.testing.assert_allclose(jax.jit(weighted_kl)(clean, adv, labels), expected, rtol=1e-8)


def test_the_weight_of_mart_receives_gradient():
    clean, adv = jnp.array([[1.0, 0.0, 0.5]]), jnp.array([[0.2, 0.9, 0.0]])
    labels = jnp.array([0])
    gradient = jax.grad(lambda z: weighted_kl(z, adv, labels).sum())(clean)
    step = 1e-6 * jnp.eye(3)[:, None]
    numeric = [(weighted_kl(clean + s, adv, labels) - weighted_kl(clean - s, adv, labels)) / 2e-6 for s in step]
    np.testing.assert_allclose(gradient[0], jnp.stack(numeric)[:, 0], rtol=1e-7)


@pytest.mark.parametrize(("name", "passes"), {"at": 1, "trades": 2, "mart": 2, "reference": 3}.items())
def test_train_mode_forward_passes(name, passes):
    """The toy's state counts them; those of the attack do not show."""
    extra = {"bn_updates": "reference"} if name == "reference" else {}
    method = KINDS.get(name, KINDS["trades"])(TOY, eps=EPS, step_size=ALPHA, num_steps=2, **extra)
    assert jax.jit(method.loss)(toy_params(), 0, batch(), KEY)[1][0] == passes


def digits(count=6):
    x = jax.random.uniform(jax.random.key(5), (count, 6, 6, 1), jnp.float32)
    return {"image": x, "label": jnp.arange(count, dtype=jnp.int32) % 5, "index": jnp.arange(count, dtype=jnp.int32)}


@pytest.mark.parametrize(
    ("name", "order"), {"at": "a", "trades": "ca", "mart": "ca", "reference": "cac"}.items(), ids=str
)
def test_running_statistics_move_in_the_documented_order(small_cnn, name, order):
    with jax.enable_x64(False):
        extra = {"bn_updates": "reference"} if name == "reference" else {}
        method = KINDS.get(name, KINDS["trades"])(small_cnn, eps=0.3, step_size=0.2, num_steps=1, **extra)
        params, state = method.init(KEY, {})
        images, labels, index = (digits()[key] for key in ("image", "label", "index"))
        first = jax.random.split(KEY, {"at": 3, "mart": 3}.get(name, 4))

        @jax.jit
        def attack():
            if name == "at":
                return method.perturb(params, state, images, labels, index, first[0], first[1])
            start = near_start(images, first[0], index, 0.001)
            return method.perturb(params, state, images, *([labels] if name == "mart" else []), start)

        adv, found = attack(), jax.jit(method.loss)(params, state, digits(), KEY)[1][0]
        move = jax.jit(lambda stats, x: small_cnn.apply(params, stats, x, train=True).batch_stats)

        def after(order):
            stats = state
            for letter in order:
                stats = move(stats, {"a": adv, "c": images}[letter])
            return stats

        def gap(stats):
            return max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, stats)), strict=True))

        assert gap(after(order)) < 1e-5
        others = [other for other in ("", "a", "c", "ca", "ac", "caa", "cac", "cca") if other != order]
        assert all(gap(after(other)) > 1e-4 for other in others)


class Noisy(networks.Toy):
    """Train-mode logits carry noise from the keys of the examples, as dropout and masks do."""

    def apply(self, params, batch_stats, images, *, train=False, keys=None, **others):
        out = super().apply(params, batch_stats, images, train=train, **others)
        if not train:
            assert keys is None
            return out
        draws = jax.vmap(lambda key: jax.random.normal(key, out.logits.shape[1:], out.logits.dtype))(keys)
        return Prediction(out.logits + draws, out.batch_stats, {})


@pytest.mark.parametrize("name", KINDS)
def test_noise_belongs_to_the_example_and_every_forward_pass_draws_anew(name):
    method = KINDS[name](Noisy(mlp, mean=0.5), eps=0.0, step_size=ALPHA, num_steps=1)
    loss = jax.jit(method.loss)
    whole, (_, metrics) = loss(toy_params(), 0, batch(), KEY)
    order = jax.random.permutation(KEY, 16)
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch())
    assert loss(toy_params(), 0, shuffled, KEY)[0] == pytest.approx(float(whole), rel=1e-12)
    if name != "at":
        assert float(metrics["kl"]) > 0.1  # x' is x: two draws of the noise are all that is between them


def test_without_radius_trades_is_natural_training():
    method = TRADES(TOY, 0.0, ALPHA, 2, kl_weight=6.0)
    loss, (_, metrics) = jax.jit(method.loss)(toy_params(), 0, batch(), KEY)
    assert loss == pytest.approx(float(cross_entropy(toy.logits(batch()["image"]), LABELS).mean()), rel=1e-12)
    assert metrics["kl"] == 0 and metrics["clean_accuracy"] == metrics["train_accuracy"]


def test_one_definition_of_the_wrong_class():
    logits = jnp.array([[3.0, 1, 2], [1, 3, 3], [1, 2, 3]])
    labels = jnp.array([0, 0, 1])
    np.testing.assert_array_equal(negative_class(logits, labels), [2, 1, 2])


def test_config_sections(small_cnn):
    section = {"name": "trades", "eps": "0.031", "step_size": "0.007", "num_steps": 10, "kl_weight": 6.0}
    method = methods.build(section, small_cnn)
    assert isinstance(method, TRADES)
    assert (method.eps, method.step_size, method.start_noise, method.bn_updates) == (0.031, 0.007, 0.001, "two")
    assert isinstance(methods.build(section | {"name": "mart"}, small_cnn), MART)
    with pytest.raises(InputError, match=r"method 'trades' lacks kl_weight: set config\.method\.kl_weight"):
        methods.build({key: value for key, value in section.items() if key != "kl_weight"}, small_cnn)
    with pytest.raises(InputError, match=r"method\.bn_updates 'twice'.*two, reference"):
        methods.build(section | {"bn_updates": "twice"}, small_cnn)
    with pytest.raises(InputError, match="field of method 'mart'"):
        methods.build(section | {"name": "mart", "bn_updates": "two"}, small_cnn)
