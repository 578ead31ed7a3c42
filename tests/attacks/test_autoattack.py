"""AutoAttack on the network for which the official code gave the counts, and on linear ones whose borders are known."""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import autoattack, l2, linf
from jrobust.attacks.autoattack_state import State
from jrobust.attacks.iterative import Problem
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.versions import Budget, Part, parts, title
from jrobust.errors import InputError
from tests.attacks import toy

KEY = jax.random.key(0)
MODULE = sys.modules["jrobust.attacks.autoattack"]  # the name in the package is the function
SHORT = Budget(apgd_steps=8, fab_steps=5, square_queries=30, eot=2)


def network(weights, images):
    flat = images.transpose(0, 3, 1, 2).reshape(images.shape[0], -1)
    return jnp.tanh((flat - 0.5) @ weights["w1"].T + weights["b1"]) @ weights["w2"].T + weights["b2"]


@functools.cache
def on_the_toy(threat, compact=True):
    weights = {"w1": toy.W1, "b1": toy.B1, "w2": toy.W2, "b2": toy.B2}
    weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    images = np.asarray(toy.images(), np.float32)
    return autoattack(
        network,
        images,
        toy.LABELS,
        KEY,
        threat,
        variables=weights,
        batch_size=16,
        compact=compact,
        segment=100,
    )


GOLDEN = [(linf(0.004), 13), (linf(0.006), 10), (linf(0.008), 6), (linf(0.010), 4), (l2(0.06), 6)]


@pytest.mark.parametrize(("threat", "robust"), GOLDEN)
def test_robust_counts_are_those_of_the_official_code(threat, robust):
    result = on_the_toy(threat)
    assert 16 - result.success.sum() == robust
    images, logits = toy.images(), toy.logits(jnp.asarray(result.adv_images))
    assert (np.argmax(logits, -1) != toy.LABELS).tolist() == result.success.tolist()
    np.testing.assert_allclose(result.loss[result.success] > 0, True)
    assert (result.adv_images[~result.success] == np.asarray(images, np.float32)[~result.success]).all()
    delta = (result.adv_images - images).reshape(16, -1)
    sizes = np.abs(delta).max(1) if threat.norm == "linf" else np.linalg.norm(delta, axis=1)
    assert sizes.max() <= threat.eps + 1e-7
    assert [part.name for part in result.parts] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert result.parts[0].attacked == 16 and sum(part.broken for part in result.parts) == 16 - robust
    assert not result.flags and result.checks["answers_differ_by"] == 0
    standing = result.parts[3]
    assert standing.attacked == robust and (standing.forward, standing.backward) == (robust * 5002, 0)


def test_fixed_batches_break_the_same_images():
    first, fixed = on_the_toy(linf(0.008)), on_the_toy(linf(0.008), compact=False)
    assert fixed.broken_by.tolist() == first.broken_by.tolist()
    np.testing.assert_array_equal(fixed.adv_images, first.adv_images)
    assert sum(part.computed for part in fixed.parts) > sum(part.computed for part in first.parts)


class Sums(NamedTuple):
    """Class k is pixel k: within Linf eps, class k takes over from the label where it is less than 2 eps behind."""

    classes: int

    def __call__(self, weights, images):
        return 10 * weights * images.reshape(images.shape[0], -1)[:, : self.classes]


DISTANCES = np.array([0.02, 0.03, 0.05, 0.07, 0.09, 0.12, 0.15])


def linear(classes, labels=0):
    """One image a distance, class 1 the next one; and an image that is wrong as it is."""
    images = np.full((8, 2, 2, 1), 0.4, np.float32)
    images[:7, 0, 0, 0] += DISTANCES
    images[:, 1, :, 0] -= 0.01
    images[7, 0, 1, 0] = 0.5
    return images, np.full(8, labels)


@pytest.mark.parametrize(("classes", "name"), [(2, "fab-t"), (3, "apgd-dlr")])
def test_few_classes(classes, name, monkeypatch):
    def one_part(*arguments):  # compiling all of them tells nothing more
        return tuple(part for part in parts(*arguments) if part.name == name)

    monkeypatch.setattr(MODULE, "parts", one_part)
    images, labels = linear(classes)
    result = autoattack(
        Sums(classes), images, labels, KEY, linf(0.04), variables=1.0, budget=SHORT, segment=1, batch_size=8
    )
    assert result.broken_by.tolist() == [name] * 4 + [""] * 3 + ["clean"]
    (flag,) = (flag for flag in result.flags if flag.name == "few_classes")
    assert f"{classes} classes" in flag.text
    np.testing.assert_allclose(result.clean_margin[:7], -10 * DISTANCES, rtol=1e-4)


def test_the_parts_of_each_version():
    def names(*arguments):
        return [(part.name, part.variants) for part in parts(*arguments)]

    assert names("standard", "linf", 10) == [("apgd-ce", 1), ("apgd-t", 9), ("fab-t", 9), ("square", 1)]
    assert names("standard", "l2", 1000) == names("standard", "linf", 10)
    assert names("standard", "linf", 4) == [("apgd-ce", 1), ("apgd-t", 3), ("fab-t", 3), ("square", 1)]
    assert names("standard", "linf", 2) == [("apgd-ce", 1), ("fab-t", 1), ("square", 1)]
    five = [("apgd-ce", 5), ("apgd-dlr", 5), ("fab", 1), ("fab-random", 4), ("square", 1)]
    assert names("plus", "l2", 10) == [*five, ("apgd-t", 9), ("fab-t", 9)]
    assert names("plus", "l2", 3) == [*five, ("fab-t", 2)]
    assert names("rand", "linf", 10) == [("apgd-ce", 1), ("apgd-dlr", 1)]
    assert names("rand", "linf", 2) == [("apgd-ce", 1)]
    assert title("standard", Budget()) == "AutoAttack standard" and "not comparable" in title("standard", SHORT)
    for version, classes, message in (("standart", 10, "did you mean 'standard'"), ("plus", 1, "at least 2 classes")):
        with pytest.raises(InputError, match=message):
            parts(version, "linf", classes)
    with pytest.raises(InputError, match="fab_steps=0"):
        Budget(fab_steps=0)


def test_passes_are_counted_as_the_attacks_make_them():
    def model(images):
        return jnp.sinh(images.reshape(images.shape[0], -1))

    problem = Problem.of(jnp.zeros((2, 2, 2, 1)), jnp.zeros(2, int), linf(0.1), KEY)
    for part in parts("standard", "linf", 4, SHORT):
        begin = functools.partial(part.attack.begin, model, problem)
        carry = jax.eval_shape(begin)
        text = str(jax.make_jaxpr(begin)())
        assert (text.count(" sinh "), text.count(" cosh ")) == part.first_passes, part.name
        text = str(jax.make_jaxpr(lambda c: part.attack.advance(model, problem, c, jnp.zeros(2, int)))(carry))  # noqa: B023
        assert (text.count(" sinh "), text.count(" cosh ")) == part.passes, part.name


class Straight(NamedTuple):
    """A cheap attack on `Sums`: the target's pixel up, the label's down, a little further in each iteration."""

    num_steps: int = 8
    share: float = 1.0

    class Carry(NamedTuple):
        x: jax.Array
        success: jax.Array

    def begin(self, logits_fn, problem) -> Any:
        return self.Carry(problem.images, jnp.zeros(problem.labels.shape, bool))

    def advance(self, logits_fn, problem, carry, step) -> Any:
        def pixel(k):
            return jax.nn.one_hot(k, 4).reshape(-1, 2, 2, 1)

        length = (self.share * problem.threat.eps * (step + 1) / self.num_steps)[:, None, None, None]
        x = problem.images + length * (pixel(problem.targets) - pixel(problem.labels))
        return self.Carry(x, jnp.argmax(logits_fn(x), -1) != problem.labels)

    def finish(self, problem, carry):
        x = jnp.where(carry.success[:, None, None, None], carry.x, problem.images)
        return AttackResult(x, carry.success, jnp.zeros(x.shape[0]), jnp.zeros(x.shape[0], int))


def cheap_parts(version, norm, classes, budget):
    def part(name, share, variants):
        return Part(name, Straight(share=share), variants, True, (1, 0), (0, 0), name)

    return part("apgd-ce", 0.3, 1), part("apgd-t", 0.6, 3), part("square", 1.0, 1)


@pytest.fixture
def cheap(monkeypatch):
    """A function that runs a sequence of cheap attacks on `Sums` of four classes."""
    monkeypatch.setattr(MODULE, "parts", cheap_parts)
    images, labels = linear(4)

    def run(logits_fn=None, *, images=images, labels=labels, eps=0.05, variables=1.0, **options):
        logits_fn = logits_fn or Sums(4)
        options = {"batch_size": 4, "segment": 2, "budget": SHORT} | options
        key = options.pop("key", KEY)
        return autoattack(logits_fn, images, labels, key, linf(eps), variables=variables, **options)

    return run


def same(first, second):
    for name in ("adv_images", "success", "loss", "steps", "broken_by", "clean_margin"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert [part[:3] for part in first.parts] == [part[:3] for part in second.parts]


def test_each_part_attacks_what_stands(cheap):
    result = cheap()
    expected = ["apgd-ce", "apgd-t", "apgd-t", "square", "square", "", "", "clean"]
    assert result.broken_by.tolist() == expected
    assert [(part.name, part.attacked, part.broken) for part in result.parts] == [
        ("apgd-ce", 7, 1),
        ("apgd-t", 6, 2),
        ("square", 4, 2),
    ]
    assert result.success.tolist() == [name != "" for name in expected]
    assert "black_box" in {flag.name for flag in result.flags}
    # 2 * 0.015 * step / 8 > 0.02, and so on for the further ones
    assert result.steps.tolist() == [6, 5, 7, 6, 8, 0, 0, 0]
    assert (result.loss[result.success] > 0).all() and (result.loss[~result.success] < 0).all()
    for options in ({"batch_size": 16, "segment": 8}, {"compact": False}):
        same(cheap(**options), result)


def test_an_image_keeps_its_outcome_in_other_company(cheap):
    result = cheap()
    images, labels = linear(4)
    chosen = np.array([6, 3, 1])
    alone = cheap(images=images[chosen], labels=labels[chosen], index=chosen)
    np.testing.assert_array_equal(alone.adv_images, result.adv_images[chosen])
    assert alone.broken_by.tolist() == result.broken_by[chosen].tolist()


class Killed(Exception):
    pass


@pytest.mark.parametrize("fixed", [False, True])
def test_a_killed_run_goes_on_to_the_same_end(cheap, tmp_path, fixed):
    events = []
    options = {"compact": not fixed}
    whole = cheap(progress=events.append, **options)
    assert sum(event.part_ended for event in events) == 3 and events[-1].left == 0
    shares = [event.done / (event.done + event.left) for event in events]
    assert shares == sorted(shares) and shares[-1] == 1
    for stop in range(len(events)):
        state, kills = None, 0

        def kill(event):
            nonlocal kills
            kills += 1
            if kills == stop + 1:  # noqa: B023
                event.state.save(tmp_path / "state.npz")
                raise Killed

        with pytest.raises(Killed):
            cheap(progress=kill, **options)
        state = State.load(tmp_path / "state.npz")
        rest = []
        same(cheap(state=state, progress=rest.append, **options), whole)
        assert len(rest) <= len(events) - stop + 2
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_the_state_of_another_run_is_refused(cheap, tmp_path):
    events = []
    cheap(progress=events.append)
    events[0].state.save(tmp_path / "state.npz")
    for options, message in (
        ({"eps": 0.06}, "other images, attacks, radius or key"),
        ({"key": jax.random.key(1)}, "other images, attacks, radius or key"),
        ({"variables": 2.0}, "another model"),
    ):
        with pytest.raises(InputError, match=message):
            cheap(state=State.load(tmp_path / "state.npz"), **options)
    (tmp_path / "half.npz").write_bytes((tmp_path / "state.npz").read_bytes()[:300])
    with pytest.raises(InputError, match="not the state of a run"):
        State.load(tmp_path / "half.npz")
    with pytest.raises(InputError, match="does not exist"):
        State.load(tmp_path / "none.npz")


def test_all_images_wrong_is_an_answer_at_once(cheap):
    calls = []
    images, labels = linear(4, labels=3)
    result = cheap(images=images, labels=labels, progress=calls.append)
    assert result.success.all() and set(result.broken_by) == {"clean"} and not result.steps.any()
    np.testing.assert_array_equal(result.adv_images, images)
    assert all(event.part_ended and event.robust == 0 for event in calls)
    assert [part.attacked for part in result.parts] == [0, 0, 0] and result.checks["inside_ball"]


def test_functions_of_images_alone(cheap):
    offset = jnp.zeros(())
    result = cheap(lambda x: Sums(4)(1 + offset, x), variables=None)
    assert result.broken_by.tolist() == cheap().broken_by.tolist()


def test_batches_are_spread_over_devices(cheap):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    same(cheap(mesh=mesh, batch_size=5), cheap())


def test_programs_are_compiled_once(cheap):
    traced = []

    def logits(weights, images):
        traced.append(images.shape[0])
        return Sums(4)(weights, images)

    cheap(logits)
    first = len(traced)
    cheap(logits, eps=0.03, key=jax.random.key(3), variables=1.1)
    # The check for noise in Python traces twice on purpose.
    assert len(traced) - first <= 3 and max(traced) <= 8


def test_noise_is_refused(cheap):
    generator = np.random.default_rng(0)

    def noisy(weights, images):
        return Sums(4)(weights, images) + generator.normal(scale=0.01) * jnp.arange(4.0)

    with pytest.raises(InputError, match=r"answers differently.*mask_mode='mean'.*version='rand'"):
        cheap(noisy)
    result = cheap(noisy, allow_random=True)
    assert result.flags[0].name == "random" and result.checks["answers_differ_by"] > 1e-4


def test_randomised_models(monkeypatch):
    def noisy(weights, images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        return Sums(4)(weights, images) + 0.02 * noise

    monkeypatch.setattr(MODULE, "parts", lambda *arguments: parts(*arguments)[:1])
    images, labels = linear(4)
    options = {"variables": 1.0, "version": "rand", "batch_size": 8, "segment": 1, "budget": SHORT}
    result = autoattack(noisy, images, labels, KEY, linf(0.04), **options)
    assert result.broken_by.tolist() == ["apgd-ce"] * 4 + [""] * 3 + ["clean"]
    assert {flag.name for flag in result.flags} == {"few_classes"}
    assert result.parts[0].backward == 2 * (result.parts[0].iterations + 7)  # two draws a gradient
    monkeypatch.setattr(MODULE, "parts", lambda *arguments: ())
    result = autoattack(lambda w, x, keys: Sums(4)(w, x), images, labels, KEY, linf(0.04), **options)
    assert "not_random" in {flag.name for flag in result.flags}


def test_probabilities_and_flat_regions_are_flagged(cheap):
    result = cheap(lambda w, x: jax.nn.softmax(Sums(4)(w, x)))
    assert result.broken_by.tolist() == cheap().broken_by.tolist()
    assert "probabilities" in {flag.name for flag in result.flags}
    result = cheap(lambda w, x: jnp.round(20 * Sums(4)(w, x)))
    assert "zero_gradient" in {flag.name for flag in result.flags}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((0, 2, 2, 1), np.float32), "labels": np.zeros(0, int)}, "no images"),
        ({"images": np.zeros((8, 4), np.float32)}, r"shape \(8, 4\)"),
        ({"images": np.full((8, 2, 2, 1), 128, np.uint8)}, "type uint8.*divide by 255"),
        ({"images": np.full((8, 2, 2, 1), 128.0)}, "from 128 to 128: .*divide by 255"),
        ({"images": linear(4)[0] - 0.5}, r"from -0\.\d+ to .*normalisation inside"),
        ({"images": np.where(linear(4)[0] == 0.5, np.nan, linear(4)[0])}, "1 of 8 images hold NaN"),
        ({"labels": np.full(8, 4)}, "labels from 4 to 4 where the logits have 4 classes"),
        ({"labels": np.full(8, -1)}, "labels from -1"),
        ({"labels": np.zeros(7, int)}, r"labels of shape \(7,\)"),
        ({"labels": np.zeros(8)}, "type float64"),
        ({"key": 0}, "typed PRNG key"),
        ({"index": np.zeros(3, int)}, "index has shape"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"logits_fn": lambda w, x: x.mean((1, 2, 3))}, r"gives float32\[1\] for one image"),
        ({"logits_fn": lambda w, x: (x, x)}, "gives tuple for one image"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_wrong_input(cheap, change, message):
    with pytest.raises(InputError, match=message):
        cheap(**change)


def test_not_inside_a_compiled_function(cheap):
    images, _ = linear(4)
    with pytest.raises(InputError, match="outside of jit"):
        jax.jit(lambda x: cheap(images=x).success)(images)
