"""The one attack kernel: projected gradient ascent on any per-example objective, inside any threat model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jrobust import keys, loops
from jrobust.attacks import selection
from jrobust.attacks.selection import Select
from jrobust.attacks.threat import Threat, finite

# images -> loss float[B] or (loss float[B], success bool[B]);
# with `state`: (images, state) -> (loss float[B], next state).
Objective = Callable[..., Any]
# (images, state of the transform) -> images at which the gradient is taken.
Lookahead = Callable[[jax.Array, Any], jax.Array]


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
    transform: optax.GradientTransformation | None = None,
    lookahead: Lookahead | None = None,
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
      transform: what becomes of the gradients of the batch before `threat.ascend`: momentum, smoothing. It must treat
        examples separately. It sees them in float32 or wider, without NaN and infinity.
      lookahead: `(x, state of the transform) -> where the gradient is taken` in the place of x. Iterates are selected
        as they are, at the price of a forward pass a step where `select` asks for more than the last.
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
    if lookahead is not None and transform is None:
        raise ValueError("lookahead is a function of the transform's state: pass transform=...")
    if state is not None and (restarts > 1 or select != "last"):
        raise ValueError("an objective with state takes restarts=1 and select='last'")

    images, start = jax.lax.stop_gradient((images, start))
    index = jnp.arange(images.shape[0]) if index is None else index
    evaluate = _evaluation(objective, stateful=state is not None)
    project = jax.vmap(threat.project)

    def keep(x: jax.Array) -> jax.Array:
        return x if mask is None else jnp.where(jnp.asarray(mask) != 0, x, images)

    def run(run_key: jax.Array) -> tuple[selection.Best, Any]:
        if randomly:
            x0 = keep(jax.vmap(threat.random_start)(keys.per_example(run_key, index), images))
        else:
            x0 = images if start is None else project(keep(start), images)

        def step(t: jax.Array, carry: tuple) -> tuple:
            x, best, s, m = carry
            loss, success, gradient, s = evaluate(x if lookahead is None else lookahead(x, m), s)
            if select != "last":
                if lookahead is not None:
                    loss, success, _, _ = evaluate(x, s, differentiate=False)
                best = selection.keep_better(best, selection.judge(select, x, loss, success, t, num_steps))
            if transform is not None:
                gradient, m = transform.update(finite(gradient), m, x)
            return project(keep(x + step_size * jax.vmap(threat.ascend)(gradient)), images), best, s, m

        m0 = None if transform is None else transform.init(finite(images))
        init = x0, selection.nothing(images), state, m0
        x, best, end_state, _ = loops.fori_loop(0, num_steps, step, init, unroll=unroll)
        # One forward pass judges the last iterate; where nobody asks for its loss the compiler drops it.
        loss, success, _, _ = evaluate(x, end_state, differentiate=False)
        last = selection.judge(select, x, loss, success, num_steps, num_steps)
        return selection.keep_better(best, last), end_state

    if restarts == 1:
        best, end_state = run(key)
    else:
        run_keys = keys.per_example(key, jnp.arange(restarts))
        runs = jax.vmap(lambda k: run(k)[0])(run_keys)
        best, end_state = selection.best_run(runs, runs.score if callable(select) else runs.loss), None
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
