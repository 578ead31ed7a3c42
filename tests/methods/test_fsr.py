"""The losses of FSR against golden values of the released modules, closed forms, and every switch; see docs/fsr.md."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import loops, methods
from jrobust.attacks import cross_entropy, kl
from jrobust.errors import InputError
from jrobust.methods import mart, trades
from jrobust.methods.adversarial import Adversarial, Terms
from jrobust.methods.fsr import FSR, non_robust_loss, separation_loss
from jrobust.methods.mart import MART
from jrobust.methods.trades import TRADES
from jrobust.models import fsr, zoo
from jrobust.models.fsr import Auxiliary, Separation
from jrobust.models.network import Prediction
from jrobust.training.method import Variables
from tests.models import test_fsr_golden as golden

KEY = jax.random.key(0)
N, K = 6, 5
LABELS = jnp.arange(N) % K
EPS = {"eps": 0.1, "step_size": 0.05, "num_steps": 1}
BASES = {
    "at": functools.partial(Adversarial, **EPS),
    "trades": functools.partial(TRADES, **EPS, kl_weight=6.0),
    "mart": functools.partial(MART, **EPS, kl_weight=5.0),
}


@pytest.fixture(autouse=True)
def x64(request):
    with jax.enable_x64("network" not in request.fixturenames):
        yield


def stub(separation="learned"):
    """A classifier of which only the kind of separation is asked."""
    return types.SimpleNamespace(module=types.SimpleNamespace(fsr=Separation(separation=separation)))


def fsr_on(base, separation="learned", **fields):
    classifier = stub(separation)
    return FSR(classifier, BASES[base](classifier), **fields)


def test_golden_total(monkeypatch):
    """The released modules in train mode with given noise: AT with radius 0, whose image is the feature map itself."""
    nhwc = lambda x: x.reshape(golden.BATCH, golden.CHANNELS, golden.SIDE, golden.SIDE).transpose(0, 2, 3, 1)
    shape = (golden.BATCH * golden.CHANNELS * golden.SIDE**2,)
    drawn = [nhwc(0.5 + 0.49 * golden.wave(shape, np.sin, phase, 0.9)) for phase in (1, 2)]
    monkeypatch.setattr(fsr, "uniforms", lambda *_: jnp.stack(drawn, 1))
    module = fsr.FSR(golden.CLASSES, Separation(hidden=golden.HIDDEN), "float64")
    head = golden.wave((golden.CLASSES, golden.CHANNELS), np.sin, 0.5, 0.4).T
    variables = jax.tree.map(jnp.asarray, golden.golden_variables())

    class Network:
        module = types.SimpleNamespace(fsr=Separation())

        def apply(self, params, batch_stats, images, *, train=False, keys=None, mask_mode=None, intermediates=False):
            both = {"params": params, "batch_stats": batch_stats}
            call = {"train": train, "mask_mode": mask_mode, "keys": keys, "mutable": ["batch_stats"]}
            (out, auxiliary), updated = module.apply(both, images, **call)
            logits = out.mean((1, 2)) @ head - 0.1 * jnp.arange(golden.CLASSES)
            return Prediction(logits, updated["batch_stats"], {"fsr_block4": auxiliary} if intermediates else {})

    method = FSR(Network(), Adversarial(Network(), eps=0.0, step_size=0.1, num_steps=0))
    images = jnp.asarray(nhwc(np.abs(golden.wave(shape, np.sin, 0.2, 0.53))))
    batch = {"image": images, "label": jnp.array([1, 3]), "index": jnp.arange(2)}
    loss, (_, metrics) = jax.jit(method.loss)(variables["params"], variables["batch_stats"], batch, KEY)
    assert metrics["cross_entropy"] == pytest.approx(2.21209727, abs=1e-8)
    assert metrics["separation_loss"] == pytest.approx(2.15801987 + 0.99161316, abs=2e-8)
    assert metrics["recalibration_loss"] == pytest.approx(1.77848767, abs=1e-8)
    assert metrics["robust_share"] == pytest.approx(33.4292038496 / images.size, abs=1e-10)
    assert loss == pytest.approx(7.14021797, abs=2e-8)


def test_forms_of_the_non_robust_loss():
    p = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    logits, labels, wrong = jnp.log(p) + 3.0, jnp.array([3, 1]), jnp.array([2, 0])
    expected = {
        "mispredicted": -np.log([0.3, 0.7]),
        "uniform": -np.log(p).mean(1),
        "entropy_max": (p * np.log(p)).sum(1),
        "avg_targeted": [-np.log([0.1, 0.2, 0.3]).mean(), -np.log([0.7, 0.1, 0.1]).mean()],
    }
    for form, value in expected.items():
        np.testing.assert_allclose(non_robust_loss(logits, labels, wrong, form), value, rtol=1e-12, err_msg=form)
    with pytest.raises(ValueError, match="unknown form"):
        non_robust_loss(logits, labels, wrong, "entropy")


def test_each_form_is_least_where_it_says():
    """Of the uniform prediction, of a sure label and of a sure y': which one the loss prefers."""
    labels, wrong, eye = jnp.zeros(3, int), jnp.ones(3, int), 9.0 * jnp.eye(4)
    logits = jnp.stack([jnp.zeros(4), eye[0], eye[1]])
    for form, best in {"mispredicted": 2, "uniform": 0, "entropy_max": 0, "avg_targeted": 0}.items():
        assert int(jnp.argmin(non_robust_loss(logits, labels, wrong, form))) == best, form
    sure_of_the_label = non_robust_loss(logits, labels, wrong, "avg_targeted")[1]
    assert sure_of_the_label > non_robust_loss(logits, labels, wrong, "uniform")[1]


def random_terms(modules=1, seed=0):
    """Hand-made forward passes: logits and auxiliary outputs at random, on x and on x'."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(2 * rng.normal(size=shape))

    def prediction():
        modules_of = {f"fsr_block{i}": Auxiliary(*draw(3, N, K), draw(N, 2, 2, 3)) for i in range(modules)}
        return Prediction(draw(N, K), None, modules_of | {"layer1": draw(N, 1)})

    return Terms(jnp.float64(1.0), prediction(), prediction(), None, {})


def test_the_mispredicted_class_is_that_of_the_final_logits():
    terms, method = random_terms(), fsr_on("at")
    logits, auxiliary = terms.adversarial.logits, terms.adversarial.intermediates["fsr_block0"]
    predicted, others = np.argmax(logits, 1), np.argsort(logits, 1)
    wrong = np.where(predicted == LABELS, others[:, -2], predicted)
    assert (wrong != LABELS).all() and 0 < (predicted == LABELS).sum() < N
    assert any(wrong != np.argmax(np.where(np.arange(K) == LABELS[:, None], -9, auxiliary.non_robust), 1))
    expected = cross_entropy(auxiliary.robust, LABELS) + cross_entropy(auxiliary.non_robust, jnp.asarray(wrong))
    found = method.auxiliary_losses(terms, LABELS)
    np.testing.assert_allclose(found[0], expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(found[1], cross_entropy(auxiliary.recalibrated, LABELS).mean(), rtol=1e-12)


def test_losses_of_several_modules_are_averaged():
    terms, method = random_terms(modules=2), fsr_on("at")
    seen = terms.adversarial.intermediates
    single = [
        terms._replace(adversarial=terms.adversarial._replace(intermediates={name: seen[name]}))
        for name in ("fsr_block0", "fsr_block1")
    ]
    first, second = (np.array(method.auxiliary_losses(one, LABELS)) for one in single)
    np.testing.assert_allclose(method.auxiliary_losses(terms, LABELS), (first + second) / 2, rtol=1e-12)
    assert np.abs(first - second).min() > 1e-2


def test_what_a_separation_that_is_not_learned_keeps():
    terms = random_terms()
    auxiliary = terms.adversarial.intermediates["fsr_block0"]
    robust = float(cross_entropy(auxiliary.robust, LABELS).mean())
    whole = fsr_on("at").auxiliary_losses(terms, LABELS)
    for separation, expected in {"none": 0.0, "greedy": robust, "random": robust}.items():
        for form in ("mispredicted", "uniform", "entropy_max", "avg_targeted"):
            found = fsr_on("at", separation, separation_loss=form).auxiliary_losses(terms, LABELS)
            assert found[0] == pytest.approx(expected, rel=1e-12) and found[1] == whole[1]
    assert whole[0] > robust
    assert separation_loss(auxiliary, LABELS, LABELS, separation="none").shape == (N,)


def test_switches_change_what_they_say_and_nothing_else():
    terms = random_terms(modules=2)
    losses = lambda **fields: np.array(fsr_on("trades", **fields).auxiliary_losses(terms, LABELS))
    adv, clean, both = (losses(auxiliary_on=word) for word in ("adv", "clean", "both"))
    np.testing.assert_allclose(both, (adv + clean) / 2, rtol=1e-12)
    np.testing.assert_allclose(clean, fsr_on("at").auxiliary_losses(terms._replace(adversarial=terms.clean), LABELS))
    assert np.abs(adv - clean).min() > 1e-3
    forms = [losses(separation_loss=form) for form in ("mispredicted", "uniform", "entropy_max", "avg_targeted")]
    assert len({float(separation) for separation, _ in forms}) == 4 and len({float(rec) for _, rec in forms}) == 1
    np.testing.assert_array_equal(losses(separation_weight=3.0, recalibration_weight=2.0), adv)  # weights are outside

    pairs = zip(terms.clean.intermediates.values(), terms.adversarial.intermediates.values(), strict=True)
    pairs = [pair for pair in pairs if isinstance(pair[0], Auxiliary)]
    drift = np.mean([kl(x.robust, adv.robust) + kl(x.non_robust, adv.non_robust) for x, adv in pairs])
    move = np.mean([kl(x.recalibrated, adv.recalibrated) for x, adv in pairs])
    np.testing.assert_allclose(losses(auxiliary_kl=True), [adv[0] + drift, adv[1] + move], rtol=1e-12)
    kept = {
        kind: fsr_on("trades", kind, auxiliary_kl=True).auxiliary_losses(terms, LABELS) for kind in ("none", "greedy")
    }
    assert kept["none"][0] == 0 and kept["none"][1] == pytest.approx(float(adv[1] + move), rel=1e-12)
    assert kept["greedy"][0] < losses(auxiliary_kl=True)[0]


@pytest.fixture
def network():
    """A small network with a module."""
    section = {"name": "small_cnn", "width": 4, "fsr": {"positions": ("block3",), "hidden": 3}}
    return zoo.build(section, num_classes=K, input_shape=(6, 6, 1), mean=(0.4,), std=(0.3,))


def batch():
    images = jax.random.uniform(jax.random.key(5), (N, 6, 6, 1), jnp.float32)
    return {"image": images, "label": LABELS.astype(jnp.int32), "index": jnp.arange(N, dtype=jnp.int32)}


def test_the_total_and_its_gradient_on_a_network(network):
    base = BASES["trades"](network)
    params, state = jax.tree.map(lambda leaf: leaf + 0.1, network.init(KEY))

    # The weights are traced, so that one program serves both totals.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(separation_weight, recalibration_weight):
        method = FSR(network, base, separation_weight, recalibration_weight)
        return jax.value_and_grad(method.loss, has_aux=True)(params, state, batch(), KEY)

    (plain, _), plain_gradient = step(0.0, 0.0)
    (loss, (_, metrics)), gradient = step(0.5, 2.0)
    assert plain == pytest.approx(float(metrics["cross_entropy"] + 6 * metrics["kl"]), rel=1e-6)
    expected = plain + 0.5 * metrics["separation_loss"] + 2.0 * metrics["recalibration_loss"]
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert 0 < metrics["robust_share"] < 1
    position = "fsr_block3"
    assert not any(leaf.any() for leaf in jax.tree.leaves(plain_gradient[position]["aux"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient[position]))  # S, R and A learn
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), plain_gradient["conv1"], gradient["conv1"])
    assert moved["kernel"] > 1e-4  # and nothing stands between their losses and the network


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A classifier that writes down how it is called."""

    inner: object
    calls: list = dataclasses.field(default_factory=list, hash=False)

    @property
    def module(self):
        return self.inner.module

    def apply(self, *variables_and_images, train=False, keys=None, mask_mode=None, intermediates=False, **others):
        self.calls.append((train, mask_mode, keys is not None, intermediates))
        call = {"train": train, "keys": keys, "mask_mode": mask_mode, "intermediates": intermediates}
        return self.inner.apply(*variables_and_images, **call, **others)


@pytest.mark.parametrize(("name", "train_passes"), {"at": 1, "trades": 2, "mart": 2}.items())
def test_attacks_see_still_masks_and_losses_noisy_ones(name, train_passes, network, monkeypatch):
    monkeypatch.setattr(loops, "unrolled", bool)
    for module in (trades, mart):
        monkeypatch.setattr(module, "near_start", lambda images, key, index, scale: images)
    recorder = Recorder(network)
    method = FSR(recorder, BASES[name](recorder))
    variables = jax.eval_shape(network.init, KEY)
    jax.eval_shape(method.loss, *variables, batch(), KEY)
    attack, losses = recorder.calls[:-train_passes], recorder.calls[-train_passes:]
    assert set(attack) == {(False, "mean", False, False)} and set(losses) == {(True, "sample", True, True)}
    recorder.calls.clear()
    jax.eval_shape(method.logits, Variables(*variables), batch()["image"])
    assert recorder.calls == [(False, "mean", False, False)]


def section(**changes):
    return {"name": "adversarial", "eps": "8/255", "step_size": "2/255", "num_steps": 10} | changes


def test_config_sections(network):
    method = methods.build(section(fsr={"separation_weight": 0.5, "separation_loss": "uniform"}), network)
    assert isinstance(method, FSR) and isinstance(method.base, Adversarial)
    assert (method.base.eps, method.separation_weight, method.recalibration_weight) == (8 / 255, 0.5, 1.0)
    assert hash(method) is not None and method.base.classifier is method.classifier is network
    plain = zoo.build({"name": "small_cnn"}, num_classes=K, input_shape=(6, 6, 1), mean=(0.4,), std=(0.3,))
    assert isinstance(methods.build(section(), plain), Adversarial)


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "no losses": ({}, "model.fsr is set and method.fsr is not"),
        "misspelt": ({"fsr": {"separation_wait": 1.0}}, "did you mean 'separation_weight'"),
        "no word": ({"fsr": {"separation_loss": "entropy"}}, "method.fsr.separation_loss 'entropy'"),
        "no clean pass": ({"fsr": {"auxiliary_on": "both"}}, "never forwards clean images"),
        "no clean pass for the KL": ({"fsr": {"auxiliary_kl": True}}, "never forwards clean images"),
    }.values(),
)
def test_mistakes_are_one_line(network, changes, message):
    with pytest.raises(InputError, match=message):
        methods.build(section(**changes), network)


def test_losses_without_modules(network):
    plain = zoo.build({"name": "small_cnn"}, num_classes=K, input_shape=(6, 6, 1), mean=(0.4,), std=(0.3,))
    with pytest.raises(InputError, match=r"method\.fsr is set and model\.fsr is not"):
        methods.build(section(fsr={}), plain)
    with pytest.raises(InputError, match="expected adversarial, trades or mart"):
        methods.build({"name": "standard", "fsr": {}}, network)
