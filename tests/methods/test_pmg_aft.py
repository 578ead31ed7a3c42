"""The losses of PMG-AFT in closed form, on a CLIP with a linear tower and perturbed images that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.methods.adversarial import Adversarial
from jrobust.methods.pmg_aft import PMGAFT
from jrobust.methods.standard import Standard
from jrobust.models.clip.zero_shot import PromptSizes
from jrobust.replicated import Replicated
from jrobust.training.method import Variables
from tests.methods.flat_clip import PIXELS, SCALE, batch, log_softmax, model, unit

ATTACK = {"eps": 2 / 255, "step_size": 1.5 / 255, "num_steps": 2}
KEY = jax.random.key(5, impl="rbg")  # compiles in less time
B, CLASSES = 4, 2  # everywhere: operations are compiled for their shapes
DISTANCES = ("kl", "l2", "feature_l2", "feature_cosine")


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


class Given(PMGAFT):
    """x' = 1 - x."""

    def perturb(self, params, state, images, labels, index, start_key, noise_key):
        return 1 - images


def method_of(classifier=None, method=Given, **fields):
    return method(classifier or model(CLASSES), **ATTACK | fields)


def backward(method, params, state, rows):
    """Return the loss, its metrics and its gradient; not compiled, as the operations are the same in all the tests."""
    (loss, (_, metrics)), gradient = jax.value_and_grad(method.loss, has_aux=True)(params, state, rows, KEY)
    return loss, metrics, gradient


def kl(p, q):
    """KL(softmax p || softmax q) of each row."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.fixture
def ours():
    """Variables whose target has left the original, and a batch."""
    params, state = method_of().init(jax.random.key(0), {})
    other = jnp.asarray(np.random.default_rng(1).normal(size=params["kernel"].shape))
    return {"kernel": params["kernel"] + 0.5 * other}, state, jax.tree.map(jnp.asarray, batch(B, classes=CLASSES))


def reference(params, state, rows, *, distance="kl", direction="ori_adv", clean_params=None, scale=1.0):
    """The three terms of each example, from features that are unit vectors."""
    texts, x = np.asarray(state["text"].value), np.asarray(rows["image"]).reshape(len(rows["image"]), -1)
    kernels = params, clean_params or params, state["tower"].value
    adv, clean, original = (
        unit(image @ np.asarray(tower["kernel"])) for image, tower in zip((1 - x, x, 1 - x), kernels, strict=True)
    )
    z, z_clean, z0 = (scale * v @ texts.T for v in (adv, clean, original))
    ordered = lambda reference, adv: kl(reference, adv) if direction == "ori_adv" else kl(adv, reference)
    general = {
        "kl": ordered(z0, z),
        "l2": ((np.exp(log_softmax(z)) - np.exp(log_softmax(z0))) ** 2).sum(-1),
        "feature_l2": ((adv - original) ** 2).sum(-1),
        "feature_cosine": 1 - (adv * original).sum(-1),
    }[distance]
    robust = -log_softmax(z)[np.arange(len(x)), np.asarray(rows["label"])]
    return robust, general, ordered(z_clean, z)


@pytest.mark.parametrize(
    ("direction", "general", "regulariser"), [("ori_adv", 0.3681, 0.1927), ("adv_ori", 0.5108, 0.2231)]
)
@pytest.mark.parametrize(("reduction", "times"), [("sum", 4), ("batchmean", 1)])
def test_two_classes_by_hand(direction, general, regulariser, reduction, times):
    """P0(x') = (.9, .1), P(x') = (.5, .5) and P(x) = (.8, .2); with a scale of 10, for cosines are at most 1."""

    def towards(p):
        """Return the unit vector whose difference of logits is log p / (1 - p) where the texts are the axes."""
        turn = np.arcsin(np.log(p / (1 - p)) / 10 / np.sqrt(2))
        return np.array([np.cos(np.pi / 4 - turn), np.sin(np.pi / 4 - turn), 0, 0])

    def tower(on_x, on_perturbed):
        rows = [3 * towards(on_x), 0.2 * towards(on_perturbed)]  # of the first two pixels: x is (1, 0), x' is (0, 1)
        return {"kernel": jnp.asarray(np.concatenate([rows, np.zeros((PIXELS - 2, 4))]))}

    state = {"text": Replicated(jnp.eye(2, 4)), "logit_scale": Replicated(jnp.log(10.0))}
    state["tower"] = Replicated(tower(0.3, 0.9))
    image = jnp.zeros((4, PIXELS)).at[:, 0].set(1.0).reshape(4, 2, 2, 3)
    rows = {"image": image, "label": jnp.array([0, 1, 0, 0]), "index": jnp.arange(4)}
    fields = {"general_weight": 2.0, "clean_weight": 3.0, "kl_direction": direction, "reduction": reduction}
    loss, (same, metrics) = method_of(**fields).loss(tower(0.8, 0.5), state, rows, KEY)
    assert same is state
    found = [float(metrics[name]) for name in ("cross_entropy", "general", "regulariser")]
    assert found == pytest.approx([np.log(2), times * general, times * regulariser], abs=times * 5e-5)
    assert float(loss) == pytest.approx(np.log(2) + times * (2 * general + 3 * regulariser), abs=times * 3e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_direction_and_reduction(distance, ours):
    for direction, reduction, scaled in (("ori_adv", "batchmean", True), ("adv_ori", "sum", False)):
        fields = {"general_weight": 0.7, "clean_weight": 1.3, "distance": distance}
        method = method_of(model(CLASSES, scaled=scaled), **fields, kl_direction=direction, reduction=reduction)
        loss, (_, metrics) = method.loss(*ours, KEY)
        terms = reference(*ours, distance=distance, direction=direction, scale=SCALE if scaled else 1.0)
        robust, general, clean = (term.mean() for term in terms)
        times = B if reduction == "sum" else 1
        np.testing.assert_allclose(metrics["cross_entropy"], robust, rtol=1e-12)
        np.testing.assert_allclose(metrics["general"], times * general, rtol=1e-10)
        np.testing.assert_allclose(metrics["regulariser"], times * clean, rtol=1e-10)
        np.testing.assert_allclose(loss, robust + times * (0.7 * general + 1.3 * clean), rtol=1e-10)


@pytest.mark.parametrize("distance", DISTANCES)
def test_at_the_original_the_generalisation_branch_and_its_gradient_vanish(distance, ours):
    _, state, rows = ours
    method = method_of(distance=distance, general_weight=10.0, clean_weight=0.0)
    alone = method_of(general_weight=0.0, clean_weight=0.0)
    _, metrics, gradient = backward(method, state["tower"].value, state, rows)
    _, _, expected = backward(alone, state["tower"].value, state, rows)
    assert abs(float(metrics["general"])) < 1e-14 and "regulariser" not in metrics
    np.testing.assert_allclose(gradient["kernel"], expected["kernel"], rtol=0, atol=1e-13)


def test_without_a_perturbation_the_regulariser_and_its_gradient_vanish(ours):
    method = method_of(method=PMGAFT, eps=0.0, clean_weight=10.0, general_weight=0.0)
    _, metrics, gradient = jax.jit(lambda *arguments: backward(method, *arguments))(*ours)
    standard = Standard(method.classifier)
    _, _, expected = backward(standard, *ours)
    assert abs(float(metrics["regulariser"])) < 1e-14 and "general" not in metrics
    np.testing.assert_allclose(gradient["kernel"], expected["kernel"], rtol=0, atol=1e-12)


def slope(function, params, direction, h=1e-6):
    """The derivative of a function of the kernel along a direction."""
    ahead, behind = ({"kernel": params["kernel"] + t * direction} for t in (h, -h))
    return float(function(ahead) - function(behind)) / (2 * h)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_flow_through_the_clean_images_unless_told_otherwise(distance, ours):
    params, state, rows = ours
    direction = np.random.default_rng(2).normal(size=params["kernel"].shape)
    total = lambda robust, general, clean: robust.mean() + general.sum() + clean.sum()
    options = {"distance": distance, "scale": SCALE}
    slopes = {
        False: slope(lambda p: total(*reference(p, state, rows, **options)), params, direction),
        True: slope(lambda p: total(*reference(p, state, rows, **options, clean_params=params)), params, direction),
    }
    assert abs(slopes[False] - slopes[True]) > 1e-2
    assert not method_of().detach_clean
    for detach, expected in slopes.items():
        _, _, gradient = backward(method_of(detach_clean=detach, distance=distance), *ours)
        assert np.vdot(gradient["kernel"], direction) == pytest.approx(expected, rel=1e-6)


def test_without_weights_it_is_adversarial_training_to_the_bit(ours):
    ft_tecoa = Adversarial(model(CLASSES), **ATTACK)
    nothing = method_of(method=PMGAFT, general_weight=0.0, clean_weight=0.0)
    both = jax.jit(lambda *arguments: (backward(ft_tecoa, *arguments), backward(nothing, *arguments)))(*ours)
    (loss, metrics, gradient), (other, others, other_gradient) = both
    assert loss == other and metrics == others
    np.testing.assert_array_equal(gradient["kernel"], other_gradient["kernel"])
    assert np.abs(gradient["kernel"]).min() > 0


def test_terms_are_of_perturbed_and_of_clean_images(ours):
    params, state, rows = ours
    terms = method_of().terms(*ours, KEY)
    features = rows["image"].reshape(B, -1) @ params["kernel"]
    perturbed = (1 - rows["image"]).reshape(B, -1) @ params["kernel"]
    np.testing.assert_allclose(terms.clean.intermediates["features"], features, rtol=1e-12)
    np.testing.assert_allclose(terms.adversarial.intermediates["features"], perturbed, rtol=1e-12)
    texts = state["text"].value
    np.testing.assert_allclose(terms.clean.logits, SCALE * unit(features) @ texts.T, rtol=1e-12)
    np.testing.assert_allclose(terms.adversarial.logits, SCALE * unit(perturbed) @ texts.T, rtol=1e-12)
    assert method_of(clean_weight=0.0).terms(*ours, KEY).clean is None

    predicted = [np.argmax(logits, axis=1) for logits in (terms.clean.logits, terms.adversarial.logits)]
    metrics = method_of().terms(params, state, rows | {"label": jnp.asarray(predicted[0])}, KEY).metrics
    assert float(metrics["clean_accuracy"]) == 1
    assert float(metrics["train_accuracy"]) == np.mean(predicted[0] == predicted[1]) < 1


PROMPTS = model(CLASSES, prompts=PromptSizes("full", tokens=3))


@pytest.mark.parametrize("seen", ["none", "pixels", "all"])
def test_which_prompts_the_original_sees(seen, ours):
    """And that no gradient flows through them there."""
    rows = ours[2]
    method = method_of(PROMPTS, original_prompts=seen, clean_weight=0.0)
    params, state = method.init(jax.random.key(3), {})
    kernel, texts = np.asarray(state["tower"].value["kernel"]), np.asarray(state["text"].value)
    x = 1 - np.asarray(rows["image"]).reshape(B, -1)

    def features(prompts, parts):
        pixels, tokens = (np.asarray(part) * (name in parts) for name, part in zip("pt", prompts, strict=True))
        return unit((x + pixels.reshape(-1)) @ kernel + tokens.sum(0))

    parts = {"none": "", "pixels": "p", "all": "pt"}[seen]

    def general(prompts):
        return kl(SCALE * features(params, parts) @ texts.T, SCALE * features(prompts, "pt") @ texts.T).sum()

    def loss(prompts):
        z = log_softmax(SCALE * features(prompts, "pt") @ texts.T)
        return general(prompts) - z[np.arange(B), np.asarray(rows["label"])].mean()

    _, metrics, gradient = backward(method, params, state, rows)
    assert float(metrics["general"]) == pytest.approx(general(params), rel=1e-10, abs=1e-12)
    if seen != "all":
        assert general(params) > 0.1
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    ahead, behind = (jax.tree.map(lambda a, d, t=t: a + t * d, params, direction) for t in (1e-6, -1e-6))
    expected = (loss(ahead) - loss(behind)) / 2e-6
    found = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
    assert found == pytest.approx(expected, rel=1e-6)


def test_what_is_deployed_and_what_training_starts_from():
    method = method_of()
    variables = method.init(jax.random.key(0), {})
    assert variables.state["tower"].value is variables.params
    deployed = method.deployed(variables)
    assert set(deployed.state) == {"text", "logit_scale"} and deployed.params is variables.params
    images = batch()["image"]
    expected = method.classifier.apply(*variables, images).logits
    np.testing.assert_array_equal(method.logits(deployed, images), expected)

    loaded = {"kernel": jnp.ones((PIXELS, 4))}

    def load(fresh):
        assert set(fresh.state) == {"text", "logit_scale"}
        return Variables(loaded, fresh.state | {"text": Replicated(jnp.eye(2, 4))})

    start = method.start_from(variables, load)
    assert start.params is loaded and start.state["tower"].value is loaded
    np.testing.assert_array_equal(start.state["text"].value, np.eye(2, 4))


def test_prompts_are_deployed_with_their_tower():
    method = method_of(PROMPTS)
    variables = method.init(jax.random.key(0), {})
    assert set(variables.state) == {"text", "logit_scale", "tower"}
    assert method.deployed(variables) is variables
    loaded = Replicated({"kernel": jnp.ones((PIXELS, 4))})
    start = method.start_from(variables, lambda fresh: Variables(fresh.params, fresh.state | {"tower": loaded}))
    assert start.state["tower"] is loaded and start.params is variables.params
