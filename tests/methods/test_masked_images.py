"""The losses of masked-image training in closed form, on a CLIP with one matrix a patch, and which patches it masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.methods.masked_images import MaskedImages
from jrobust.methods.standard import Standard
from jrobust.replicated import Replicated
from jrobust.training.method import Variables
from tests.methods.flat_clip import log_softmax, unit
from tests.methods.patched_clip import (
    CLASSES,
    GRID,
    PATCHES,
    Patched,
    batch,
    cells,
    features,
    logits,
    maps,
    model,
)

KEY = jax.random.key(5)
B = 8
CAM = ("object", "context")
WAYS = [(masking, refilling) for masking in (*CAM, "random") for refilling in ("single", "multi", "none")]
WAYS.append(("none", "single"))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def seen(monkeypatch):
    """What towers have been shown since: the kernel, the images, the patches that are seen."""
    calls, original = [], Patched.image_features

    def image_features(self, params, images, *, keep=None, factors=None):
        if factors is None:  # with factors it is the clean forward pass
            calls.append((params["image"]["kernel"], images, keep))
        return original(self, params, images, keep=keep, factors=factors)

    monkeypatch.setattr(Patched, "image_features", image_features)
    return calls


def method_of(masking="object", refilling="single", **fields):
    return MaskedImages(model(), masking, refilling, **fields)


def moved(params, seed=1, by=0.3):
    """Return parameters elsewhere."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + by * rng.normal(size=leaf.shape), params)


@pytest.fixture
def ours():
    """Variables whose student has left the pre-trained tower and whose teacher is a third network, and a batch."""
    params, state = method_of(logit_weight=1.0).init(jax.random.key(0), {})
    state = state | {"teacher": Replicated(moved(params, 2))}
    return moved(params), state, jax.tree.map(jnp.asarray, batch(B))


def cross_entropy(params, rows):
    return -log_softmax(logits(params, rows["image"]))[np.arange(B), rows["label"]].mean()


def distillation(params, state, tau):
    """tau^2 mean KL(p_teacher || p_student) as section 6 has it."""

    def of(rows):
        p, q = (log_softmax(logits(at, rows["image"]) / tau) for at in (state["teacher"].value, params))
        return tau**2 * (np.exp(p) * (p - q)).sum(1).mean()

    return of


def mask_of(keep, counterfactual, images):
    """Return bool[B, N], the patches that are dropped, or those that are not the image's own."""
    if keep is None:
        return (cells(np.asarray(counterfactual)) != cells(np.asarray(images))).any(-1)
    return ~np.asarray(keep) if keep.dtype == bool else ~np.asarray(jax.nn.one_hot(keep, PATCHES).sum(1), bool)


@pytest.mark.parametrize(("masking", "refilling"), WAYS)
def test_all_terms_and_that_both_towers_see_the_same(masking, refilling, ours, seen):
    params, state, rows = ours
    method = method_of(masking, refilling, threshold=0.4, feature_weight=7.0, logit_weight=0.7, temperature=4.0)
    loss, (same, metrics) = method.loss(params, state, rows, KEY)
    assert same is state
    seen = [call for call in seen if call[0] is not state["teacher"].value["image"]["kernel"]]
    if masking not in CAM:  # the clean forward pass
        assert seen[0][1] is rows["image"] and seen[0][2] is None
        seen = seen[1:]
    *student, teacher = seen
    assert teacher[0] is state["pretrained"].value["kernel"]
    keep = teacher[2]
    if student:
        assert student[0][0] is params["image"]["kernel"]
        assert student[0][1] is teacher[1] and student[0][2] is keep
    else:  # without masks x_cf = x, whose features are there already
        assert masking == "none" and teacher[1] is rows["image"] and keep is None
    masked = mask_of(keep, teacher[1], rows["image"])
    if refilling == "none":
        assert teacher[1] is rows["image"]
    f, f0 = (
        features({"image": {"kernel": kernel}}, teacher[1], ~masked if keep is not None else None)
        for kernel in (params["image"]["kernel"], teacher[0])
    )
    expected = {"cross_entropy": cross_entropy(params, rows), "feature_loss": ((f - f0) ** 2).mean()}
    expected["logit_loss"] = distillation(params, state, 4.0)(rows)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-10, err_msg=name)
    total = expected["cross_entropy"] + 7 * expected["feature_loss"] + 0.7 * expected["logit_loss"]
    np.testing.assert_allclose(loss, total, rtol=1e-10)
    accuracy = (logits(params, rows["image"]).argmax(1) == rows["label"]).mean()
    assert float(metrics["train_accuracy"]) == pytest.approx(accuracy) and expected["feature_loss"] > 1e-3
    if refilling != "single":  # where a patch may come from the image itself
        assert float(metrics["masked_share"]) == pytest.approx(masked.mean(), abs=1e-6)


@pytest.mark.parametrize("masking", CAM)
def test_masks_are_of_the_true_label_and_of_the_student_as_it_is(masking, ours, seen):
    params, state, rows = ours

    def masked(params, state, rows):
        seen.clear()
        method_of(masking, "none", threshold=0.3).loss(params, state, rows, KEY)
        return mask_of(seen[-1][2], None, None)

    def expected(params, rows):
        found = maps(params, rows["image"], rows["label"])
        assert np.abs(found - 0.3).min() > 1e-6
        return found > 0.3 if masking == "object" else found <= 0.3

    first = masked(params, state, rows)
    np.testing.assert_array_equal(first, expected(params, rows))
    assert 0 < first.mean() < 1
    other_label = rows | {"label": (rows["label"] + 1) % CLASSES}
    np.testing.assert_array_equal(masked(params, state, other_label), expected(params, other_label))
    later = moved(params, 3)
    np.testing.assert_array_equal(masked(later, state, rows), expected(later, rows))
    assert (masked(params, state, other_label) != first).any() and (masked(later, state, rows) != first).any()
    other = {name: Replicated(moved(frozen.value, 4)) for name, frozen in state.items()}
    np.testing.assert_array_equal(masked(params, other, rows), first)


@pytest.mark.parametrize("refilling", ["single", "multi"])
@pytest.mark.parametrize("groups", [1, 2])
def test_donors(refilling, groups, ours, seen):
    """Masked patches are those of others of the group at the same place, the rest is the image's own."""
    params, state, rows = ours
    method_of("object", refilling, threshold=0.3, groups=groups).loss(params, state, rows, KEY)
    mask = maps(params, rows["image"], rows["label"]) > 0.3
    own, filled = cells(np.asarray(rows["image"])), cells(np.asarray(seen[-1][1]))
    same = (filled[:, None] == own[None]).all(-1)  # image, donor, patch
    assert (same.sum(1) == 1).all()
    donors = same.argmax(1)
    place = np.arange(B)[:, None]
    np.testing.assert_array_equal(donors[~mask], np.broadcast_to(place, donors.shape)[~mask])
    assert (donors // (B // groups) == place // (B // groups)).all()
    if refilling == "multi":
        assert (donors != place)[mask].all()
        assert max(len(set(donors[i, mask[i]])) for i in range(B)) > 1
    else:
        assert mask.any(1).all() and all(len(set(donors[i, mask[i]])) == 1 for i in range(B))
        pi = [donors[i, mask[i]][0] for i in range(B)]
        assert sorted(pi) == list(range(B)) and pi != list(range(B))


@pytest.mark.parametrize(("masking", "refilling"), [*WAYS[:3], *WAYS[8:]])
def test_at_the_start_the_features_pull_nowhere(masking, refilling, ours):
    *_, rows = ours
    method = method_of(masking, refilling, logit_weight=3.0)
    params, state = method.init(jax.random.key(0), {})
    (_, (_, metrics)), gradient = jax.value_and_grad(method.loss, has_aux=True)(params, state, rows, KEY)
    assert float(metrics["feature_loss"]) < 1e-28 and abs(float(metrics["logit_loss"])) < 1e-13
    expected = jax.grad(lambda p: Standard(model()).loss(p, {}, rows, KEY)[0])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), gradient, expected)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(expected))


def slope(function, params, direction, h=1e-6):
    """The derivative along a direction."""
    ahead, behind = (jax.tree.map(lambda a, d, t=t: a + t * d, params, direction) for t in (h, -h))
    return float(function(ahead) - function(behind)) / (2 * h)


def test_gradients(ours):
    """Of the student through clean and masked images; none reaches what is frozen, nor comes through the map."""
    params, state, rows = ours
    method = method_of("context", "none", threshold=0.3, feature_weight=5.0, logit_weight=2.0, temperature=3.0)
    gradients = jax.grad(method.loss, argnums=(0, 1), has_aux=True)(params, state, rows, KEY)[0]
    keep = maps(params, rows["image"], rows["label"]) > 0.3
    target = features({"image": state["pretrained"].value}, rows["image"], keep)

    def reference(params):
        mse = ((features(params, rows["image"], keep) - target) ** 2).mean()
        return cross_entropy(params, rows) + 5 * mse + 2 * distillation(params, state, 3.0)(rows)

    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    found = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradients[0], direction)))
    assert found == pytest.approx(slope(reference, params, direction), rel=1e-6)
    frozen = jax.tree.leaves(gradients[1])
    assert len(frozen) == 4 and all((np.asarray(leaf) == 0).all() for leaf in frozen)


def test_kd_is_that_of_float64_numpy_at_both_temperatures(ours):
    params, state, rows = ours
    values = {}
    for tau in (1.0, 10.0):
        method = method_of(feature_weight=0.0, logit_weight=1.0, temperature=tau)
        loss, (_, metrics) = method.loss(params, state, rows, KEY)
        values[tau] = float(metrics["logit_loss"])
        assert values[tau] == pytest.approx(distillation(params, state, tau)(rows), rel=1e-12)
        assert float(loss) == pytest.approx(values[tau] + cross_entropy(params, rows), rel=1e-12)
        other = distillation(state["teacher"].value, {"teacher": Replicated(params)}, tau)(rows)
        assert abs(values[tau] - other) > 1e-4  # the other direction
    assert method_of().temperature == 10 and values[1.0] != pytest.approx(values[10.0], rel=0.1)


@pytest.mark.parametrize(("masking", "refilling"), [WAYS[0], WAYS[5], WAYS[7], WAYS[9]])
def test_kd_on_masked_images(masking, refilling, ours, seen):
    """FT_KD_image_mask of the released code: teacher and student are shown the same x_cf; there is no other term."""
    params, state, rows = ours
    state = {"teacher": state["teacher"]}
    fields = {"feature_weight": 0.0, "logit_weight": 0.7, "logit_images": "masked", "threshold": 0.4}
    method = method_of(masking, refilling, temperature=4.0, **fields)
    loss, (_, metrics) = method.loss(params, state, rows, KEY)
    *before, (kernel, images, keep) = seen
    assert kernel is state["teacher"].value["image"]["kernel"]
    if masking != "none":
        assert before[-1][0] is params["image"]["kernel"] and before[-1][1] is images and before[-1][2] is keep
        assert float(metrics["masked_share"]) > 0 and (images is rows["image"]) == (refilling == "none")
    keep = None if keep is None else ~mask_of(keep, images, rows["image"])
    p, q = (
        log_softmax((unit(features(at, images, keep)) @ at["head"]["kernel"] + at["head"]["bias"]) / 4)
        for at in (state["teacher"].value, params)
    )
    expected = float(16 * (np.exp(p) * (p - q)).sum(1).mean())
    assert float(metrics["logit_loss"]) == pytest.approx(expected, rel=1e-10)
    assert float(loss) == pytest.approx(cross_entropy(params, rows) + 0.7 * expected, rel=1e-10)
    clean = distillation(params, state, 4.0)(rows)
    assert (masking == "none") == (expected == pytest.approx(float(clean), rel=1e-3)) and "feature_loss" not in metrics


def test_without_weights_it_is_standard_training_to_the_bit(ours):
    params, _, rows = ours
    nothing = method_of(feature_weight=0.0, logit_weight=0.0)
    state = nothing.init(jax.random.key(0), {}).state
    (loss, (_, metrics)), gradient = jax.value_and_grad(nothing.loss, has_aux=True)(params, state, rows, KEY)
    plain = Standard(model())
    (other, (_, others)), expected = jax.value_and_grad(plain.loss, has_aux=True)(params, {}, rows, KEY)
    assert loss == other and metrics == others
    jax.tree.map(np.testing.assert_array_equal, gradient, expected)


def test_what_is_deployed_and_what_training_starts_from():
    method = method_of(logit_weight=1.0)
    variables = method.init(jax.random.key(0), {})
    assert set(variables.state) == {"pretrained", "teacher"}
    assert set(method_of().init(jax.random.key(0), {}).state) == {"pretrained"}
    of_logits = method_of(feature_weight=0.0, logit_weight=1.0)
    assert set(of_logits.init(jax.random.key(0), {}).state) == {"teacher"}  # no tower that is not used
    assert all(isinstance(frozen, Replicated) for frozen in variables.state.values())
    deployed = method.deployed(variables)
    assert deployed == Variables(variables.params, {})
    rows = batch()
    np.testing.assert_allclose(
        method.logits(deployed, rows["image"]), logits(deployed.params, rows["image"]), rtol=1e-8
    )

    loaded = moved(variables.params)

    def load(fresh):
        assert fresh == Variables(variables.params, {})
        return Variables(loaded, {})

    start = method.start_from(variables, load)
    assert start.params is loaded and start.state["pretrained"].value is loaded["image"]
    assert start.state["teacher"].value is loaded
    other = Variables(moved(loaded, 5), {})
    taught = method.with_teacher(start, other)
    assert taught.state["teacher"].value is other.params and taught.params is loaded
    assert taught.state["pretrained"] is start.state["pretrained"]


def test_random_masks_without_refilling_drop_a_fixed_number(ours, seen):
    params, state, rows = ours
    _, (_, metrics) = method_of("random", "none", rate=0.75).loss(params, state, rows, KEY)
    keep = seen[-1][2]
    assert keep.shape == (B, int(PATCHES / 4)) and keep.dtype == jnp.int32
    assert float(metrics["masked_share"]) == pytest.approx(1 - 2 / PATCHES) and GRID == 3
    order = np.random.default_rng(0).permutation(B)
    method_of("random", "none", rate=0.75).loss(params, state, {k: v[order] for k, v in rows.items()}, KEY)
    np.testing.assert_array_equal(seen[-1][2], keep[order])  # an image's draw is its own
