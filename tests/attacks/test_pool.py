from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import linf
from jrobust.attacks.iterative import Problem
from jrobust.attacks.ledger import Costs, Ledger, Plan
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.pool import Examples, Pool

STEPS = 12


class Carry(NamedTuple):
    x: jax.Array
    success: jax.Array
    calls: jax.Array


def draw(keys, step):
    """Numbers in [0, 1) that depend on key and step; a tenth of the compilation of the real ones."""
    bits = jax.random.key_data(keys)[:, 0] ^ (jnp.uint32(2654435761) * jnp.uint32(step))
    return (bits % 1000) / 1000


class Walk(NamedTuple):
    """A walk towards the light in steps that a row draws itself, longer ones for higher targets."""

    num_steps: int = STEPS

    def begin(self, logits_fn, problem: Problem) -> Any:
        x = problem.images + 0.02 * draw(problem.keys, 0)[:, None, None, None]
        calls = jnp.zeros(problem.labels.shape, jnp.int32)
        return Carry(x, jnp.argmax(logits_fn(x), -1) != problem.labels, calls)

    def advance(self, logits_fn, problem: Problem, carry: Carry, step) -> Any:
        length = 0.004 * draw(problem.keys, step + 1) * problem.targets.astype(jnp.float32)
        x = carry.x + length[:, None, None, None]
        return Carry(x, jnp.argmax(logits_fn(x), -1) != problem.labels, carry.calls + 1)

    def finish(self, problem: Problem, carry: Carry) -> AttackResult:
        x = jnp.where(carry.success[:, None, None, None], carry.x, problem.images)
        return AttackResult(x, carry.success, carry.x.mean((1, 2, 3)), carry.calls)


def logits(weights, images):
    score = images.mean((1, 2, 3)) - weights
    return jnp.stack([-score, score], 1)


VARIANTS = 3
N = 23
IMAGES = (np.linspace(0.4, 0.495, N)[:, None, None, None] * np.ones((1, 2, 2, 1))).astype(np.float32)
EXAMPLES = Examples(
    IMAGES,
    np.zeros(N, np.int32),
    np.tile(np.arange(1, VARIANTS + 1, dtype=np.int32), (N, 1)),
    np.arange(100, 100 + N, dtype=np.int32),
)
KEY = jax.random.key(7)
WEIGHTS = jnp.float32(0.5)


def attack(plan, *, finished=None, found=None, stop=None, logits=logits, images=None, attacked=None):
    finished = np.zeros((VARIANTS, N), bool) if finished is None else finished
    found = np.full(N, VARIANTS) if found is None else found
    attacked = np.ones(N, bool) if attacked is None else attacked
    images = {} if images is None else images
    ledger = Ledger(attacked, finished, found, drop=plan.compact)
    pool = Pool(Walk(), logits, WEIGHTS, EXAMPLES, linf("0.1"), KEY, ledger, plan)
    counts = {"begun": 0, "iterations": 0, "computed": 0, "segments": 0}
    for i, ended in enumerate(pool):
        wins = ended.positions[ended.success], ended.variants[ended.success], ended.steps[ended.success]
        for position, variant, steps, image in zip(*wins, ended.adv_images, strict=True):
            if found[position] == variant:
                images[int(position)] = (int(variant), int(steps), image)
        counts["begun"] += ended.begun
        counts["iterations"] += ended.iterations
        counts["computed"] += ended.computed
        counts["segments"] += 1
        if i == stop:
            break
    return found, images, counts, finished


@functools.cache
def expected():
    """All rows step by step, without a pool: the lowest variant that breaks each image, and its first success."""
    found = {}
    begin = jax.jit(functools.partial(Walk().begin, functools.partial(logits, WEIGHTS)))
    advance = jax.jit(functools.partial(Walk().advance, functools.partial(logits, WEIGHTS)))
    for variant in reversed(range(VARIANTS)):
        problem = Problem.of(
            jnp.asarray(IMAGES),
            jnp.asarray(EXAMPLES.labels),
            linf("0.1"),
            jax.random.fold_in(KEY, variant),
            index=jnp.asarray(EXAMPLES.numbers),
            targets=jnp.asarray(EXAMPLES.targets[:, variant]),
        )
        carries = [begin(problem)]
        for step in range(STEPS):
            carries.append(advance(problem, carries[-1], jnp.full(N, step)))
        success = np.stack([carry.success for carry in carries])
        for position in np.flatnonzero(success.any(0)):
            first = int(success[:, position].argmax())
            found[int(position)] = (variant, first, np.asarray(carries[first].x[position]))
    return found


def check(found, images):
    reference = expected()
    assert set(images) == set(reference) == set(np.flatnonzero(found < VARIANTS).tolist())
    for position, (variant, steps, image) in reference.items():
        assert images[position][:2] == (variant, steps)
        np.testing.assert_allclose(images[position][2], image, atol=1e-6)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(32, 1, shrink="always"),
        Plan(5, 4, shrink="always"),
        Plan(8, STEPS),
        Plan(8, 5, compact=False),
    ],
    ids=str,
)
def test_rows_end_as_if_each_were_alone(plan):
    assert 0 < len(expected()) < N and {row[0] for row in expected().values()} >= {0, 1}
    found, images, counts, finished = attack(plan)
    check(found, images)
    survivors = found == VARIANTS
    assert finished[:, survivors].all()
    if not plan.compact:
        assert finished.all() and counts["begun"] == N * VARIANTS
        assert counts["computed"] == -(-N * VARIANTS // 8) * 8 * 15  # three segments of five for twelve steps


def test_what_is_dropped_is_not_computed():
    dropped = attack(Plan(8, 1, shrink="always"))[2]
    fixed = attack(Plan(8, 1, compact=False))[2]
    assert dropped["begun"] < fixed["begun"] == N * VARIANTS
    assert dropped["iterations"] <= fixed["iterations"]
    assert dropped["computed"] < 0.8 * fixed["computed"]


def test_a_killed_run_goes_on_where_it_was():
    for stop in (0, 3, 9):
        found, images, _, finished = attack(Plan(8, 1, shrink="always"), stop=stop)
        assert not finished.all()
        found, images, counts, _ = attack(Plan(4, 3), finished=finished, found=found, images=images)
        check(found, images)
    assert counts["begun"] < N * VARIANTS


def test_each_bucket_is_compiled_once():
    traced: list[int] = []

    def counted(weights, images):
        traced.append(images.shape[0])
        return logits(weights, images)

    plan = Plan(8, 2, shrink="always")
    attack(plan, logits=counted, attacked=np.arange(N) < 9)
    few = {size: traced.count(size) for size in set(traced)}
    attack(plan, logits=counted)  # many more refills, the same programs
    attack(plan, logits=counted)
    for size, times in few.items():
        assert traced.count(size) == times <= 4
    assert set(traced) <= {8, 4, 2, 1} and len(few) > 2


def test_images_that_are_not_attacked_are_left_alone():
    attacked = np.arange(N) % 2 == 0
    _, images, counts, finished = attack(Plan(8, 2), attacked=attacked)
    assert not finished[:, ~attacked].any() and set(images) == set(expected()) & set(np.flatnonzero(attacked).tolist())
    _, images, counts, _ = attack(Plan(8, 2), attacked=np.zeros(N, bool))
    assert counts["segments"] == 0 and not images


def test_batches_are_spread_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    found, images, _, _ = attack(Plan(32, 2, shrink="always", mesh=mesh))
    check(found, images)
    assert Plan(64, mesh=mesh).bucket(3) == 8 and Plan(64, mesh=mesh).bucket(9) == 16


def test_a_smaller_batch_has_to_be_worth_its_compilation():
    costs = Costs()
    assert costs.best(4, most=32, segments=100) == 4  # nothing is known, nothing is compiled
    assert not costs.measured(32, 100.0)
    assert costs.best(4, most=32, segments=100) == 32  # one program is there, and no telling what it costs
    assert costs.measured(32, 2.0) and costs.measured(32, 1.0)
    assert costs.best(4, most=32, segments=112) == 32  # 4 / 32 of 112 s and another 99 s for the program
    assert costs.best(4, most=32, segments=114) == 4
    assert costs.best(4, most=16, segments=1) == 4
    costs.measured(8, 0.5)
    assert costs.best(4, most=32, segments=114) == 8


def test_few_rows_go_where_a_program_is():
    sizes = []

    def counted(weights, images):
        sizes.append(images.shape[0])
        return logits(weights, images)

    attack(Plan(32, 4), logits=counted)
    assert set(sizes) == {32}  # compiling took longer than all of the attack
    attack(Plan(32, 4), logits=counted, attacked=np.arange(N) < 1)
    assert set(sizes) == {32}
