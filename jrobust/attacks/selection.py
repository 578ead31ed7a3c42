"""Which of the iterates that an attack visits it returns, and which of its runs; per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

# "last", "best_loss" (start and last included), "any_adv": the most recent success and else the last, or a function
# images -> score float[B]: the iterate of highest score, where -inf means inadmissible.
Select = Literal["last", "best_loss", "any_adv"] | Callable[[jax.Array], jax.Array]


class Best(NamedTuple):
    """The iterate that is ahead, one entry an example; fields as in `AttackResult`."""

    score: jax.Array
    adv_images: jax.Array
    success: jax.Array
    loss: jax.Array
    steps: jax.Array


class Outcome(Protocol):
    """What `best_run` looks at, float[R, B] or bool[R, B] for R runs: `Best` or `AttackResult`."""

    @property
    def success(self) -> jax.Array:
        """Whether the run found what it looked for."""
        ...


Runs = TypeVar("Runs", bound=Outcome)


def judge(
    select: Select, x: jax.Array, loss: jax.Array, success: jax.Array, t: jax.Array | int, num_steps: int
) -> Best:
    """Give the iterate `x` of step `t` the score that puts the policy's choice on top."""
    steps = jnp.full(loss.shape, t, jnp.int32)
    if callable(select):
        score = select(x)
        success, loss = score > -jnp.inf, jnp.full_like(loss, jnp.nan)
    elif select == "best_loss":
        score = loss
    elif select == "any_adv":
        score = steps + jnp.where(success, num_steps + 1, 0)
    elif select == "last":
        score = steps
    else:
        raise ValueError(f"unknown select {select!r}: expected 'last', 'best_loss', 'any_adv' or a function")
    score = jnp.nan_to_num(score.astype(jnp.promote_types(score.dtype, jnp.float32)), nan=-jnp.inf, neginf=-jnp.inf)
    return Best(score, x, success, loss, steps)


def nothing(images: jax.Array) -> Best:
    """The state of the search before the first iterate: the clean images, at a score that anything admissible beats."""
    shape, wide = images.shape[:1], jnp.promote_types(images.dtype, jnp.float32)
    return Best(
        jnp.full(shape, -jnp.inf, wide),
        images,
        jnp.zeros(shape, bool),
        jnp.full(shape, jnp.nan, wide),
        jnp.zeros(shape, jnp.int32),
    )


def keep_better(best: Best, new: Best) -> Best:
    """Return per example the one of higher score, the earlier one where they are equal."""
    better = new.score > best.score
    return jax.tree.map(
        lambda b, n: jnp.where(better.reshape(-1, *[1] * (n.ndim - 1)), n.astype(b.dtype), b), best, new
    )


def best_run(runs: Runs, value: jax.Array) -> Runs:
    """Choose per example among R runs, stacked on the leading axis: success first, then the highest `value` [R, B]."""
    value = jnp.nan_to_num(value, nan=-jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)
    choice = jnp.lexsort((value, runs.success), axis=0)[-1]
    return jax.tree.map(lambda leaf: leaf[choice, jnp.arange(choice.shape[0])], runs)
