"""The one attack kernel: projected gradient ascent on any per-example objective, inside any threat model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jrobust import keys, loops
from jrobust.attacks.threat import Threat

# images -> loss float[B] or (loss float[B], success bool[B]);
# with `state`: (images, state) -> (loss float[B], next state).
Objective = Callable[..., Any]
Select = Literal["last", "best_loss", "any_adv"] | Callable[[jax.Array], jax.Array]


class AttackResult(NamedTuple):
    """What an attack found, one entry an example; nothing in it carries a gradient.

    Attributes:
      adv_images: float[B, H, W, C], inside the ball and [0, 1], in the dtype of the images.
      success: bool[B], whether the objective calls the returned image a success.
      loss: float[B], the objective of the returned image (NaN where `select` is a function).
      steps: int32[B], the number of steps after which the returned image was reached.
      state: what a stateful objective left behind; None otherwise.
    """

    adv_images: jax.Array
    success: jax.Array
    loss: jax.Array
    steps: jax.Array
    state: Any = None


class _Best(NamedTuple):
    score: jax.Array
    adv_images: jax.Array
    success: jax.Array
    loss: jax.Array
    steps: jax.Array


def pgd(
    objective: Objective,
    images: jax.Array,
    key: jax.Array | None = None,
    *,
    threat: Threat,
    step_size: float | jax.Array,
    num_steps: int,
    random_start: bool = True,
    start: jax.Array | None = None,
    restarts: int = 1,
    mask: jax.Array | None = None,
    select: Select = "last",
    index: jax.Array | None = None,
    state: Any = None,
    unroll: bool | None = None,
) -> AttackResult:
    """Maximise an objective over a ball around each image by projected gradient ascent.

        x_0 = start,   x_{t+1} = project(x_t + step_size * ascend(grad objective(x_t)))     (Madry et al. 2018)

    Guarantees, for every floating dtype and whatever the gradients, NaN and zero included: the result lies in the ball
    and in [0, 1]; it carries no gradient; with `num_steps=0` and no random start it equals `images`; as far as the
    objective treats examples separately, an example's result does not depend on its neighbours in the batch.

    Args:
      objective: maximised. `images -> loss float[B]`, or `-> (loss, success bool[B])`. It is summed over the batch
        before differentiation, so the gradient of an example does not depend on the batch size.
      images: float[B, H, W, C] in [0, 1], the centres of the balls.
      key: a typed PRNG key; example i draws from `fold_in(key, index[i])`. Needed if there is anything to draw.
      threat: `linf(eps)` or `l2(eps)`.
      step_size: in pixel units of [0, 1].
      num_steps: gradient evaluations.
      random_start: begin at a random point of the ball instead of at `start`.
      start: float[B, H, W, C], projected before use; `images` by default. Excludes a random start.
      restarts: independent random starts, a `vmap` axis. Per example the best run is kept: a successful one, then the
        one of highest loss (or score).
      mask: broadcastable to `images`; 0 where pixels must stay.
      select: which iterate is returned: the "last", that of "best_loss" (start and last included), the most recent
        successful one and else the last ("any_adv"), or a function `images -> score float[B]`: the visited iterate of
        highest score, where -inf means inadmissible. If all are inadmissible the image comes back with success False.
      index: int32[B], the examples' numbers in the data set; 0 .. B-1 by default.
      state: if given, the objective is `(images, state) -> (loss, state)` and is threaded through the steps (batch
        statistics, fresh noise); success is then always False, `select` "last" and `restarts` 1.
      unroll: the form of the loop; see `jrobust.loops`.

    Raises:
      ValueError: a combination of arguments that has no meaning.
    """
    randomly = random_start and start is None
    if restarts > 1 and not randomly:
        raise ValueError("restarts > 1 repeat one and the same run without a random start")
    if key is None:
        if randomly:
            raise ValueError("pgd needs a key for its random start: pass key=..., or random_start=False")
        key = jax.random.key(0)  # never drawn from
    if state is not None and (restarts > 1 or select != "last"):
        raise ValueError("an objective with state takes restarts=1 and select='last'")

    images, start = jax.lax.stop_gradient((images, start))
    index = jnp.arange(images.shape[0]) if index is None else index
    evaluate = _evaluation(objective, stateful=state is not None)
    project = jax.vmap(threat.project)

    def keep(x: jax.Array) -> jax.Array:
        return x if mask is None else jnp.where(jnp.asarray(mask) != 0, x, images)

    def run(run_key: jax.Array) -> tuple[_Best, Any]:
        if randomly:
            x0 = keep(jax.vmap(threat.random_start)(keys.per_example(run_key, index), images))
        else:
            x0 = images if start is None else project(keep(start), images)

        def step(t: jax.Array, carry: tuple) -> tuple:
            x, best, s = carry
            loss, success, gradient, s = evaluate(x, s)
            if select != "last":
                best = _keep_better(best, _judge(select, x, loss, success, t, num_steps))
            return project(keep(x + step_size * jax.vmap(threat.ascend)(gradient)), images), best, s

        x, best, end_state = loops.fori_loop(0, num_steps, step, (x0, _nothing(images), state), unroll=unroll)
        # One forward pass judges the last iterate; where nobody asks for its loss the compiler drops it.
        loss, success, _, _ = evaluate(x, end_state, differentiate=False)
        return _keep_better(best, _judge(select, x, loss, success, num_steps, num_steps)), end_state

    if restarts == 1:
        best, end_state = run(key)
    else:
        run_keys = keys.per_example(key, jnp.arange(restarts))
        best, end_state = _best_run(jax.vmap(lambda k: run(k)[0])(run_keys), by_score=callable(select)), None
    return jax.lax.stop_gradient(AttackResult(best.adv_images, best.success, best.loss, best.steps, end_state))


def fgsm(objective: Objective, images: jax.Array, *, threat: Threat) -> AttackResult:
    """Take one step of the whole radius from the image itself (Goodfellow et al. 2015): x + eps * ascend(grad).

    >>> from jrobust.attacks import linf
    >>> result = fgsm(lambda x: -x.sum((1, 2, 3)), jnp.full((1, 2, 2, 1), 0.5), threat=linf("0.25"))
    >>> float(result.adv_images.max()), int(result.steps[0])
    (0.25, 1)
    """
    return pgd(objective, images, threat=threat, step_size=threat.eps, num_steps=1, random_start=False)


def _evaluation(objective: Objective, *, stateful: bool) -> Callable:
    """Return (x, state) -> (loss[B], success[B], gradient, state) for any of the objective's three forms."""

    def total(x: jax.Array, state: Any):
        out = objective(x, state) if stateful else objective(x)
        if stateful:
            loss, state = out
            success = jnp.zeros(loss.shape, bool)
        else:
            loss, success = out if isinstance(out, tuple) else (out, jnp.zeros(out.shape, bool))
        return jnp.sum(loss), (loss, success, state)

    def evaluate(x: jax.Array, state: Any, *, differentiate: bool = True):
        if not differentiate:
            return (*total(x, state)[1][:2], None, None)
        gradient, (loss, success, state) = jax.grad(total, has_aux=True)(x, state)
        return jax.lax.stop_gradient((loss, success, gradient, state))

    return evaluate


def _judge(select: Select, x, loss, success, t, num_steps) -> _Best:
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
    return _Best(score, x, success, loss, steps)


def _nothing(images: jax.Array) -> _Best:
    """The state of the search before the first iterate: the clean images, at a score that anything admissible beats."""
    shape, wide = images.shape[:1], jnp.promote_types(images.dtype, jnp.float32)
    return _Best(
        jnp.full(shape, -jnp.inf, wide),
        images,
        jnp.zeros(shape, bool),
        jnp.full(shape, jnp.nan, wide),
        jnp.zeros(shape, jnp.int32),
    )


def _keep_better(best: _Best, new: _Best) -> _Best:
    better = new.score > best.score
    return jax.tree.map(
        lambda b, n: jnp.where(better.reshape(-1, *[1] * (n.ndim - 1)), n.astype(b.dtype), b), best, new
    )


def _best_run(runs: _Best, *, by_score: bool) -> _Best:
    """Choose per example among runs stacked on the leading axis: success first, then the highest loss or score."""
    value = jnp.nan_to_num(runs.score if by_score else runs.loss, nan=-jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)
    choice = jnp.lexsort((value, runs.success), axis=0)[-1]
    return jax.tree.map(lambda leaf: leaf[choice, jnp.arange(choice.shape[0])], runs)
