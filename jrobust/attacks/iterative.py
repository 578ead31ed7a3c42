"""The shape of AutoAttack's members: begin, advance by one iteration, finish; every row of a batch on its own.

Cut in this way an attack runs whole inside a compiled program (`run`), or iteration by iteration with every row at an
iteration of its own, so that rows that are done make room for others (`jrobust.attacks.pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.threat import Threat

# images float[B, H, W, C] -> logits float[B, K]; a randomised model takes (images, keys) with typed keys of shape [B].
LogitsFn = Callable[..., jax.Array]


class Problem(NamedTuple):
    """What B rows are to be attacked: a pytree whose leaves, but for the radius, have B leading.

    Attributes:
      images: float[B, H, W, C] in [0, 1], the centres of the balls.
      labels: int32[B].
      targets: int32[B], the class that a targeted attack aims at; the labels themselves for the others.
      keys: typed PRNG keys of shape [B]; all that a row draws comes from its own.
      threat: the ball.
    """

    images: jax.Array
    labels: jax.Array
    targets: jax.Array
    keys: jax.Array
    threat: Threat

    @classmethod
    def of(
        cls,
        images: jax.Array,
        labels: jax.Array,
        threat: Threat,
        key: jax.Array,
        *,
        index: jax.Array | None = None,
        targets: jax.Array | None = None,
    ) -> Problem:
        """Return the problem of a batch: row i draws from `fold_in(key, index[i])`, index being 0 .. B-1 by default."""
        index = jnp.arange(images.shape[0]) if index is None else index
        labels = labels.astype(jnp.int32)
        return cls(images, labels, labels if targets is None else targets, keys.per_example(key, index), threat)


class Iterative(Protocol):
    """An attack as a frozen, hashable record of numbers with three pure functions.

    A carry is a NamedTuple whose leaves all have B leading; its field `success` bool[B] says which rows are broken.
    No row looks at another one: `advance` may be given rows at different iterations, and rows in any order.
    """

    @property
    def num_steps(self) -> int:
        """Iterations after which a row is done."""
        ...

    def begin(self, logits_fn: LogitsFn, problem: Problem) -> Any:
        """Return the carry before the first iteration."""
        ...

    def advance(self, logits_fn: LogitsFn, problem: Problem, carry: Any, step: jax.Array) -> Any:
        """Return the carry after one more iteration; `step` int32[B] in 0 .. num_steps - 1 is the row's iteration."""
        ...

    def finish(self, problem: Problem, carry: Any) -> AttackResult:
        """Return what was found; a row without success gets its image back."""
        ...


def run(
    attack: Iterative,
    logits_fn: LogitsFn,
    problem: Problem,
    *,
    carry: Any = None,
    num_steps: int | None = None,
    until_broken: bool = False,
    unroll: bool = False,
) -> AttackResult:
    """Return the result of a whole attack, as a function that can be traced.

    Args:
      attack: its numbers.
      logits_fn: the classifier; its normalisation is inside.
      problem: the rows.
      carry: what to begin with; `attack.begin(logits_fn, problem)` by default.
      num_steps: stop after so many iterations; the attack's own number by default. Its schedule does not change.
      until_broken: stop when every row is broken; for attacks whose broken rows do not change any more.
      unroll: the form of the loop. Rolled by default, on CPU too: a hundred iterations make a program that takes
        minutes to compile. (There a convolution's gradient inside a loop is slow; `autoattack` steps from the host.)
    """
    problem = jax.lax.stop_gradient(problem)
    total = attack.num_steps if num_steps is None else num_steps
    carry = attack.begin(logits_fn, problem) if carry is None else carry

    def body(t: jax.Array, carry: Any) -> Any:
        return attack.advance(logits_fn, problem, carry, jnp.full(problem.labels.shape, t, jnp.int32))

    if until_broken:
        _, carry = jax.lax.while_loop(
            lambda state: (state[0] < total) & ~jnp.all(state[1].success),
            lambda state: (state[0] + 1, body(*state)),
            (jnp.zeros((), jnp.int32), carry),
        )
    elif total > 0:
        carry = jax.lax.fori_loop(0, total, body, carry, unroll=unroll)
    return jax.lax.stop_gradient(attack.finish(problem, carry))


def select_rows(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Return `where(condition, yes, no)` row by row, for pytrees whose leaves have the axis of `condition` leading."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), yes, no)
