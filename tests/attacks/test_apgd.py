"""Auto-PGD: golden values of the official AutoAttack, a plain rewrite of the algorithm, and its guarantees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import APGD, apgd, apgd_targeted, cross_entropy, dlr, l2, linf, margin, ranked_targets
from jrobust.attacks.apgd import schedule
from jrobust.attacks.iterative import Problem, run, select_rows
from jrobust.errors import InputError
from tests.attacks import toy

BALLS = {"linf": linf("0.01"), "l2": l2("0.06")}
LABELS = jnp.asarray(toy.LABELS, jnp.int32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def attack(loss, norm, num_steps=100):
    """(images, start, targets) -> the result, and the carry behind it, as one program."""
    apgd = APGD(loss, norm, num_steps)

    @jax.jit
    def compiled(images, start, targets):
        problem = Problem.of(images, LABELS, BALLS[norm], jax.random.key(0), targets=targets)
        advance = lambda t, carry: apgd.advance(toy.logits, problem, carry, jnp.full(LABELS.shape, t, jnp.int32))
        carry = jax.lax.fori_loop(0, num_steps, advance, apgd.begin(toy.logits, problem, start))
        return apgd.finish(problem, carry), carry

    return compiled


@pytest.mark.parametrize(
    ("num_steps", "windows", "ends"),
    [
        (100, [22, 19, 16, 13, 10, 7, 6, 6], [22, 41, 57, 70, 80, 87, 93, 99]),
        (50, [11, 10, 9, 8, 7], [11, 21, 30, 38, 45]),
        (20, [4, 3, 2, *[1] * 11], [4, 7, *range(9, 21)]),
        (200, [44, 38, 32, 26, 20, 14, 12, 12], [44, 82, 114, 140, 160, 174, 186, 198]),
    ],
)
def test_schedule(num_steps, windows, ends):
    table = schedule(num_steps)
    assert len(table) == num_steps
    assert (np.flatnonzero(table) + 1).tolist() == ends
    assert table[table > 0].tolist() == windows


GOLDEN = {
    ("ce", "linf"): (7, [1.932649, 1.686091, 1.973794, 2.352374, 1.693225, 1.674770, 1.826695, 1.843683]),
    ("ce", "l2"): (9, [1.849616, 1.593776, 1.877334, 2.227978, 1.631877, 1.614476, 1.807512, 1.767775]),
    ("dlr", "linf"): (4, [0.298196, 0.369421, 0.753677, 5.395940, -0.069614, 0.524147, 0.186623, 0.354348]),
    ("dlr", "l2"): (6, [0.037456, 0.168657, 0.521381, 1.0, -0.387055, 0.296188, 0.209776, 0.141414]),
}


@pytest.mark.parametrize(("loss", "norm"), GOLDEN)
def test_golden(x64, loss, norm):
    correct, values = GOLDEN[loss, norm]
    images = toy.images()
    result, carry = attack(loss, norm)(images, images, LABELS)
    np.testing.assert_allclose(result.loss[:8], values, rtol=0, atol=6e-7)
    assert int((~result.success).sum()) == correct
    if (loss, norm) == ("ce", "linf"):
        np.testing.assert_array_equal(carry.step_size, 1 / 128)
    logits = jax.jit(toy.logits)
    np.testing.assert_array_equal(logits(result.adv_images).argmax(1) != LABELS, result.success)
    function = {"ce": cross_entropy, "dlr": dlr}[loss]
    np.testing.assert_allclose(function(logits(carry.x_best), LABELS), result.loss, rtol=1e-9)


@pytest.mark.parametrize(
    ("rank", "correct", "values"),
    [
        (2, 4, [0.277821, 0.319227, 0.717770, 1.305708, -0.061780, 0.261496, 0.177584, 0.281481]),
        (3, 10, [-0.232157, -0.515342, -0.325370, 3.087770, -0.318976, -0.219647, -0.476043, -0.462480]),
        (10, 12, [-1.649700, -2.026113, -1.196272, -0.199925, -2.043347, -1.972306, -1.629889, -1.202270]),
    ],
)
def test_targeted_golden(x64, rank, correct, values):
    images = toy.images()
    targets = ranked_targets(jax.jit(toy.logits)(images), 9)[:, rank - 2]
    result, _ = attack("targeted_dlr", "linf")(images, images, targets)
    np.testing.assert_allclose(result.loss[:8], values, rtol=0, atol=6e-7)
    assert int((~result.success).sum()) == correct


@functools.cache
def slope(loss):
    function = {"ce": cross_entropy, "dlr": dlr}[loss]
    total = lambda x: (function(toy.logits(x), LABELS).sum(), toy.logits(x))
    gradient = jax.jit(jax.grad(total, has_aux=True))
    values = jax.jit(function)

    def evaluate(x):
        g, logits = gradient(x)
        return np.asarray(values(logits, LABELS)), np.asarray(logits.argmax(1) != LABELS), np.asarray(g)

    return evaluate


def written_out(loss, norm, images, start, num_steps, eps):
    """Algorithm 1 image by image, with the details of the official code; nothing is shared with the library."""
    ends, window = [], max(int(0.22 * num_steps), 1)
    while sum(ends) + window <= num_steps:
        ends.append(window)
        window = max(window - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
    checks = dict(zip(np.cumsum(ends), ends, strict=True))

    def project(v, i):
        if norm == "linf":
            return np.clip(np.clip(v, images[i] - eps, images[i] + eps), 0, 1)
        delta = v - images[i]
        length = np.sqrt((delta**2).sum())
        return np.clip(images[i] + delta / (length + 1e-12) * min(eps, length), 0, 1)

    x = list(np.clip(start, 0, 1))
    value, wrong, g = slope(loss)(np.stack(x))
    rows = [
        {"old": x[i], "best": x[i], "g_best": g[i], "L_best": value[i], "L_check": value[i], "reduced": True}
        | {"adv": x[i] if wrong[i] else None, "eta": 2 * eps, "losses": [0.0], "g": g[i], "steps": 0}
        for i in range(len(x))
    ]
    for t in range(num_steps):
        for i, row in enumerate(rows):
            d = np.sign(row["g"]) if norm == "linf" else row["g"] / (np.sqrt((row["g"] ** 2).sum()) + 1e-12)
            v = project(x[i] + row["eta"] * d, i)
            a = 1.0 if t == 0 else 0.75
            x[i], row["old"] = project(x[i] + a * (v - x[i]) + (1 - a) * (x[i] - row["old"]), i), x[i]
        value, wrong, g = slope(loss)(np.stack(x))
        for i, row in enumerate(rows):
            row["g"] = g[i]
            if wrong[i]:
                row |= {"adv": x[i], "steps": t + 1}
            if value[i] > row["L_best"]:
                row |= {"best": x[i], "g_best": g[i], "L_best": value[i]}
            row["losses"].append(value[i])
            if t + 1 in checks:
                k = checks[t + 1]
                rises = sum(b > a for a, b in zip(row["losses"][-k - 1 :], row["losses"][-k:], strict=False))
                halve = rises <= 0.75 * k or (not row["reduced"] and row["L_check"] >= row["L_best"])
                if halve:
                    row["eta"] /= 2
                    x[i], row["g"] = row["best"], row["g_best"]
                row |= {"reduced": halve, "L_check": row["L_best"]}
    return x, rows


# A window of 4 steps, as the first one of 20, meets the bound of three rises in four to the letter.
@pytest.mark.parametrize(
    ("loss", "norm", "num_steps"), [*((*which, 100) for which in GOLDEN), ("dlr", "linf", 20), ("dlr", "l2", 20)]
)
def test_the_algorithm_written_out(x64, loss, norm, num_steps):
    images, eps = toy.images(), float(BALLS[norm].eps)
    wave = jnp.sin(jnp.arange(images.size)).reshape(images.shape)
    start = jax.vmap(BALLS[norm].project)(images + eps * wave * (1 if norm == "linf" else 0.1), images)
    result, carry = attack(loss, norm, num_steps)(images, start, LABELS)
    x, rows = written_out(loss, norm, np.asarray(images), np.asarray(start), num_steps, eps)
    # Where the label's logit is the third DLR is flat, at 1, and the gradient is made of rounding.
    calm = np.flatnonzero(np.abs(carry.loss_best - 1) > 1e-6)
    assert len(calm) >= 14
    for i in calm:
        row = rows[i]
        np.testing.assert_allclose(carry.x[i], x[i], rtol=0, atol=1e-9)
        np.testing.assert_allclose(carry.x_best[i], row["best"], rtol=0, atol=1e-9)
        assert abs(result.loss[i] - row["L_best"]) < 1e-9
        assert float(carry.step_size[i]) * eps == row["eta"]
        assert bool(result.success[i]) == (row["adv"] is not None) and int(result.steps[i]) == row["steps"]
        expected = np.asarray(images[i]) if row["adv"] is None else row["adv"]
        np.testing.assert_allclose(result.adv_images[i], expected, rtol=0, atol=1e-9)
    assert 0 < int(result.success.sum()) < 16


def test_checkpoint():
    """What one does, row by row, after a window of 4 steps whose last one begins here."""
    attack, level = APGD("ce", "linf", 20, random_start=False), float(np.log(2))  # of two equal logits
    images = jnp.full((6, 1, 1, 1), 0.5)
    problem = Problem.of(images, jnp.zeros(6, int), linf(0.1), jax.random.key(0))
    flat = lambda x: jnp.zeros((len(x), 2))
    begun = attack.begin(flat, problem)
    # Against the record: the first loss is compared with 0; the start counts as halved.
    assert (begun.loss == 0).all() and begun.reduced.all() and (begun.step_size == 2).all()
    np.testing.assert_allclose([begun.loss_best, begun.loss_checked], level, rtol=1e-6)

    best, low = begun.loss_best[0], begun.loss_best[0] - 0.1
    rows = [  # rises before this step, the loss before it, best loss at the last checkpoint, halved there -> halved now
        (2, low, best, True, True),  # three rises in four are too few
        (3, low, best, True, False),
        (3, best, best, True, True),  # the same loss is no rise
        (3, low, best, False, True),  # nothing better was found, nor was the step halved
        (3, low, low, False, False),
        (0, low, low, True, True),
    ]
    rises, loss, checked, reduced, expected = (jnp.array(column) for column in zip(*rows, strict=True))
    away = jnp.full_like(images, 0.57)
    advance = jax.jit(functools.partial(attack.advance, flat))
    carry = begun._replace(
        increases=rises, loss=loss, loss_checked=checked, reduced=reduced, x=away, x_best=images + 0.02, x_old=images
    )
    after = advance(problem, carry, jnp.full(6, 3))
    np.testing.assert_array_equal(after.reduced, expected)
    np.testing.assert_array_equal(after.step_size, jnp.where(expected, 1, 2))
    np.testing.assert_array_equal(after.increases, 0)
    np.testing.assert_array_equal(after.loss_checked, best)
    # 0.57 and a quarter of the way that led there, or the best point; the point before is 0.57 for both.
    np.testing.assert_allclose(after.x.ravel(), jnp.where(expected, 0.52, 0.57 + 0.25 * 0.07), rtol=1e-6)
    np.testing.assert_array_equal(after.x_old, away)
    between = advance(problem, carry, jnp.full(6, 2))
    np.testing.assert_array_equal(between.reduced, reduced)
    np.testing.assert_array_equal(between.step_size, 2)
    np.testing.assert_array_equal(between.increases, rises + (loss < best))
    np.testing.assert_array_equal(between.loss_checked, checked)


def test_public_functions_are_these_runs(x64):
    images, threat = toy.images(), BALLS["linf"]
    expected, carry = attack("ce", "linf", 10)(images, images, LABELS)
    settings = {"threat": threat, "num_steps": 10, "random_start": False}
    for select in ("any_adv", "best_loss"):
        result = jax.jit(lambda x, s=select: apgd(toy.logits, x, LABELS, select=s, **settings))(images)
        np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-12)
        wanted = expected.adv_images if select == "any_adv" else carry.x_best
        np.testing.assert_allclose(result.adv_images, wanted, atol=1e-12)
    logits = jax.jit(toy.logits)(result.adv_images)
    np.testing.assert_allclose(cross_entropy(logits, LABELS), result.loss, rtol=1e-12)
    np.testing.assert_array_equal(logits.argmax(1) != LABELS, result.success)


WEIGHTS = jax.random.normal(jax.random.key(7), (48, 5))


def small(x):
    return jnp.tanh(3 * x.astype(jnp.float32).reshape(x.shape[0], -1) - 1) @ WEIGHTS


def small_problem(count=6):
    images = jax.random.uniform(jax.random.key(0), (count, 4, 4, 3))
    return images, small(images).argmax(1)


def test_restarts_are_rows():
    """As a loop over `fold_in(key, r)`: a success first, then the highest loss."""
    images, labels = small_problem()
    settings = {"threat": linf(0.06), "num_steps": 5}
    key = jax.random.key(3)
    together = jax.jit(lambda k: apgd(small, images, labels, k, restarts=3, **settings))(key)
    once = jax.jit(lambda k: apgd(small, images, labels, k, **settings))
    alone = [once(jax.random.fold_in(key, r)) for r in range(3)]
    losses, success = (np.stack([getattr(a, name) for a in alone]) for name in ("loss", "success"))
    np.testing.assert_array_equal(together.success, success.any(0))
    chosen = np.where(success == success.any(0), losses, -np.inf).argmax(0)
    assert len(set(chosen)) > 1 and 0 < together.success.sum() < 6
    for i, r in enumerate(chosen):
        np.testing.assert_allclose(together.loss[i], losses[r, i], rtol=1e-6)
        np.testing.assert_allclose(together.adv_images[i], alone[r].adv_images[i], atol=1e-6)


def test_targets_are_rows():
    images, labels = small_problem()
    threat, key = l2(0.3), jax.random.key(4)
    settings = {"threat": threat, "num_steps": 5}
    together = jax.jit(lambda k: apgd_targeted(small, images, labels, k, num_targets=3, **settings))(key)
    targets = ranked_targets(small(images), 3)

    @jax.jit
    def once(target, key):
        problem = Problem.of(images, labels, threat, key, targets=target)
        return run(APGD("targeted_dlr", "l2", 5), small, problem)

    alone = [once(targets[:, r], jax.random.fold_in(key, r)) for r in range(3)]
    success = np.stack([a.success for a in alone])
    np.testing.assert_array_equal(together.success, success.any(0))
    assert 0 < together.success.sum() < 6
    broken = np.asarray(together.success)
    assert (margin(small(together.adv_images), labels)[broken] > 0).all()
    np.testing.assert_array_equal(together.adv_images[~broken], images[~broken])
    losses = np.where(success == success.any(0), np.stack([a.loss for a in alone]), -np.inf)
    np.testing.assert_allclose(together.loss, losses.max(0), rtol=1e-5)


def test_rows_do_not_see_each_other_nor_the_batch():
    images, labels = small_problem()
    chosen = jnp.array([4, 2])
    attack = jax.jit(
        lambda x, y, i: apgd(small, x, y, jax.random.key(1), threat=l2(0.3), num_steps=5, restarts=2, index=i)
    )
    whole, part = attack(images, labels, jnp.arange(6)), attack(images[chosen], labels[chosen], chosen)
    np.testing.assert_allclose(part.adv_images, whole.adv_images[chosen], atol=1e-6)
    np.testing.assert_allclose(part.loss, whole.loss[chosen], rtol=1e-5)
    other = attack(images[chosen], labels[chosen], jnp.array([2, 4]))
    assert float(jnp.abs(other.adv_images - part.adv_images).max()) > 1e-3  # the number of the image matters


def test_rows_may_be_at_different_iterations():
    images, labels = small_problem()
    problem = Problem.of(images, labels, linf(0.06), jax.random.key(2))
    attack = APGD("ce", "linf", 12)
    begin = jax.jit(lambda: attack.begin(small, problem))
    advance = jax.jit(lambda carry, step: attack.advance(small, problem, carry, step))
    expected = jax.jit(lambda: run(attack, small, problem))()

    delay, carry = jnp.array([0, 3, 1, 0, 7, 2]), begin()
    for t in range(12 + 7):
        step = jnp.clip(t - delay, 0, 11).astype(jnp.int32)
        carry = select_rows((t >= delay) & (t - delay < 12), advance(carry, step), carry)
    result = attack.finish(problem, carry)
    np.testing.assert_allclose(result.adv_images, expected.adv_images, atol=1e-6)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(result.steps, expected.steps)


def test_once_broken_is_broken():
    """The start is misclassified and what follows is not: the start comes back."""
    images = jnp.full((2, 1, 1, 1), 0.5)

    def logits(x):
        near = jnp.where(jnp.abs(x - 0.5) < 0.05, 1.0, -1.0).sum((1, 2, 3)) + 1e-3 * x.sum((1, 2, 3))
        return jnp.stack([jnp.zeros(2), near], 1)

    attack = lambda x: apgd(logits, x, jnp.zeros(2, int), threat=linf(0.1), num_steps=1, random_start=False)
    result = jax.jit(attack)(images)
    assert result.success.all() and (result.steps == 0).all()
    np.testing.assert_array_equal(result.adv_images, images)


def test_small_gradients_are_as_good_as_large_ones():
    images = jnp.full((2, 2, 2, 1), 0.5)
    logits = lambda x: jnp.stack([jnp.zeros(2), 1e-11 * (x - 0.5).sum((1, 2, 3))], 1)
    attack = lambda x: apgd(logits, x, jnp.ones(2, int), threat=l2(0.1), num_steps=1, random_start=False)
    result = jax.jit(attack)(images)
    np.testing.assert_allclose(result.adv_images, 0.5 - 0.1 / 2, atol=1e-4)


def test_random_starts_lie_on_the_surface():
    images = jnp.full((32, 4, 4, 3), 0.5)
    for threat, norm in ((linf(0.06), "linf"), (l2(0.3), "l2")):
        problem = Problem.of(images, jnp.zeros(32, int), threat, jax.random.key(0))
        begin = jax.jit(lambda p, n=norm: APGD("ce", n).begin(small, p).x)
        delta = np.asarray(begin(problem) - images).reshape(32, -1)
        size = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
        np.testing.assert_allclose(size, threat.eps, rtol=1e-5)
        assert abs(delta.mean()) < 0.1 * np.abs(delta).mean() and len(np.unique(delta)) > 1000


def nan_gradient(x):
    return jnp.stack([jnp.sqrt(-1 - x).sum((1, 2, 3)), *[x.sum((1, 2, 3))] * 4], 1)


def zero_gradient(x):
    return jnp.zeros((x.shape[0], 5))


def partly_nan(x):  # also the loss is NaN, in some images
    return small(jnp.where(x > 0.5, jnp.log(x - 0.52), x))


@functools.partial(jax.jit, static_argnames=("logits_fn", "norm", "loss"))
def attacked(logits_fn, images, eps, *, norm, loss):
    settings = {"threat": norm(eps), "num_steps": 6}
    if loss == "targeted_dlr":
        return apgd_targeted(logits_fn, images, jnp.zeros(6, int), jax.random.key(0), num_targets=2, **settings)
    return apgd(logits_fn, images, jnp.zeros(6, int), jax.random.key(0), loss=loss, **settings)


@pytest.mark.parametrize("logits_fn", [nan_gradient, zero_gradient, partly_nan])
@pytest.mark.parametrize(
    ("norm", "loss", "dtype"),
    [(linf, "ce", "float32"), (l2, "dlr", "float32"), (l2, "targeted_dlr", "bfloat16"), (linf, "dlr", "bfloat16")],
)
def test_guarantees(logits_fn, norm, loss, dtype):
    images = small_problem()[0].round(1).astype(dtype)
    for eps in (0.0, 0.1, 3.0):
        result = attacked(logits_fn, images, eps, norm=norm, loss=loss)
        assert result.adv_images.dtype == dtype and not np.isnan(result.loss).any()
        adv = np.asarray(result.adv_images, np.float64)
        assert np.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1
        delta = (adv - np.asarray(images, np.float64)).reshape(6, -1)
        size = np.abs(delta).max(1) if norm is linf else np.linalg.norm(delta, axis=1)
        assert (size <= eps * (1 + 1e-6)).all()


def test_nothing_to_do_and_no_gradient():
    images, labels = small_problem()
    attack = lambda x, n: apgd(small, x, labels, threat=linf(0.06), num_steps=n, random_start=False)
    np.testing.assert_array_equal(jax.jit(lambda x: attack(x, 0).adv_images)(images), images)
    gradient = jax.jit(jax.grad(lambda x: attack(x, 2).adv_images.sum() + attack(x, 2).loss.sum()))(images)
    np.testing.assert_array_equal(gradient, 0)


def test_expectation_over_transformation():
    """Gradients are means over the draws; losses and predictions belong to the last one."""
    images, labels = jnp.full((6, 2, 2, 1), 0.5), jnp.zeros(6, jnp.int32)
    direction = jnp.array([1.0, -1.0, 1.0, -1.0])

    def noisy(x, keys):
        noise = jax.vmap(lambda k: 2 * jax.random.normal(k, (4,)))(keys)
        bias = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 1)))(keys)
        score = ((x.reshape(-1, 4) - 0.5) * (direction + noise)).sum(1)
        return jnp.stack([jnp.zeros(x.shape[0]), score + jnp.where(bias, 1.0, -1.0)], 1)

    def first_step(eot):
        problem = Problem.of(images, labels, linf(1e-4), jax.random.key(0))
        attack = APGD("ce", "linf", 10, eot=eot, random_start=False)
        carry = attack.begin(noisy, problem)
        return carry, attack.advance(noisy, problem, carry, jnp.zeros(6, jnp.int32))

    (begun, many), (_, one) = jax.jit(first_step, static_argnums=0)(50), jax.jit(first_step, static_argnums=0)(1)
    moved = jnp.sign(many.x - images).reshape(6, 4)
    np.testing.assert_array_equal(moved, jnp.tile(direction, (6, 1)))
    assert bool((jnp.sign(one.x - images).reshape(6, 4) != direction).any())
    # One draw's loss is log(1 + e) or log(1 + 1/e), and not a mean of many.
    values = np.log1p(np.exp([1.0, -1.0]))
    for carry in (begun, many):
        nearest = np.abs(np.asarray(carry.loss_best)[:, None] - values).argmin(1)
        np.testing.assert_allclose(carry.loss_best, values[nearest], atol=0.01)
    drawn = np.asarray(begun.loss_best) > 1
    assert drawn.any() and not drawn.all()  # every image has draws of its own
    np.testing.assert_array_equal(begun.success, drawn)
    assert bool((jnp.abs(many.loss - begun.loss_best) > 0.5).any())  # and every evaluation draws anew


def test_eot_of_a_deterministic_network_changes_nothing():
    images, labels = small_problem()
    settings = {"threat": linf(0.06), "num_steps": 4}
    plain = jax.jit(lambda k: apgd(small, images, labels, k, **settings))(jax.random.key(0))
    ignoring = lambda x, keys: small(x)
    averaged = jax.jit(lambda k: apgd(ignoring, images, labels, k, eot=2, **settings))(jax.random.key(0))
    np.testing.assert_allclose(averaged.loss, plain.loss, rtol=1e-5)


def test_no_weight_gradient_in_an_iteration():
    weights = [jnp.zeros((48, 256)), jnp.zeros((256, 10))]
    images, labels = jnp.zeros((64, 4, 4, 3)), jnp.zeros(64, jnp.int32)
    attack = APGD("ce", "linf", random_start=False)

    def logits(weights, x):
        return jax.nn.relu(x.reshape(x.shape[0], -1) @ weights[0]) @ weights[1]

    def advance(weights, problem, carry):
        return attack.advance(lambda x: logits(weights, x), problem, carry, jnp.zeros(64, jnp.int32))

    problem = Problem.of(images, labels, linf(0.1), jax.random.key(0))
    carry = jax.eval_shape(lambda: attack.begin(lambda x: logits(weights, x), problem))
    compiled = jax.jit(advance).lower(weights, problem, carry).compile()
    forward = 2 * 64 * sum(w.size for w in weights)
    assert compiled.cost_analysis()["flops"] == pytest.approx(2 * forward, rel=0.2)


def test_refusals():
    images, labels = small_problem()
    settings = {"threat": linf(0.1), "num_steps": 1, "random_start": False}
    few = lambda n: lambda x: small(x)[:, :n]
    with pytest.raises(InputError, match=r"2 classes: DLR needs at least 3"):
        apgd(few(2), images, labels, loss="dlr", **settings)
    with pytest.raises(InputError, match=r"3 classes: targeted DLR needs at least 4"):
        apgd_targeted(few(3), images, labels, num_targets=2, **settings)
    with pytest.raises(InputError, match=r"9 target classes, where there are 4 wrong ones"):
        apgd_targeted(small, images, labels, **settings)
    with pytest.raises(InputError, match=r"unknown loss 'cee'.*did you mean 'ce'"):
        apgd(small, images, labels, loss="cee", **settings)
    with pytest.raises(InputError, match="unknown targeted loss 'ce'"):
        apgd_targeted(small, images, labels, loss="ce", **settings)
    with pytest.raises(InputError, match="unknown select"):
        apgd(small, images, labels, select="last", **settings)
    with pytest.raises(InputError, match="num_steps=-1"):
        APGD(num_steps=-1)
    with pytest.raises(ValueError, match="needs targets"):
        apgd(small, images, labels, loss="targeted_dlr", **settings)
    with pytest.raises(ValueError, match="restarts=2"):
        apgd(small, images, labels, restarts=2, **settings)
    with pytest.raises(ValueError, match="needs a key"):
        apgd(small, images, labels, threat=linf(0.1))
    with pytest.raises(ValueError, match="an attack in l2 on a ball in linf"):
        run(APGD(norm="l2"), small, Problem.of(images, labels, linf(0.1), jax.random.key(0)))
