"""The compiled programs that several suites share: predictions, perturbations, their size.

`logits` is static and the variables are an argument, so a program is compiled once for a model and a batch shape, and
radii and step sizes, which are traced, do not compile it again. Callers set the matmul precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrobust import keys, loops
from jrobust.attacks import Threat, cross_entropy, iterative, margin, momentum, pgd, untargeted
from jrobust.attacks.iterative import Iterative, Problem
from jrobust.attacks.model_checks import looks_like_probabilities

Logits = Callable[..., jax.Array]
Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Outcome(NamedTuple):
    """What a classifier says, one entry an example.

    Attributes:
      prediction: int32[B].
      correct: bool[B]; an example with a logit that is not finite counts as wrong.
      margin: float32[B], max_{k != y} z_k - z_y; positive where misclassified.
      finite: bool[B], whether all logits are.
    """

    prediction: jax.Array
    correct: jax.Array
    margin: jax.Array
    finite: jax.Array


class Size(NamedTuple):
    """How large perturbations are, one entry an example: norms, and the range of the perturbed image (NaN shows)."""

    linf: jax.Array
    l2: jax.Array
    lowest: jax.Array
    highest: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def predict(logits: Logits, variables: Any, images: jax.Array, labels: jax.Array) -> Outcome:
    """Return what the classifier says about `images` float32[B, H, W, C]."""
    scores = logits(variables, images)
    prediction = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    finite = jnp.all(jnp.isfinite(scores), axis=-1)
    return Outcome(prediction, (prediction == labels) & finite, margin(scores, labels).astype(jnp.float32), finite)


def craft(
    logits: Logits,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    key: jax.Array,
    threat: Threat,
    step_size: jax.Array,
    *,
    num_steps: Sequence[int],
    random_start: bool,
    restarts: int = 1,
    loss: Loss = cross_entropy,
) -> list[jax.Array]:
    """Return the iterates of PGD after each of `num_steps` (ascending): a float32[B, H, W, C] for each.

    Not one compiled program but calls of few: PGD remembers nothing but its iterate, so it may stop and go on anywhere,
    and the iterates 20 and 100 are those of PGD-20 and PGD-100 of equal start and step size. On an accelerator all
    steps up to the next stop are one call, their number an argument; on CPU, where loops are unrolled
    (`jrobust.loops`) and a hundred steps do not compile in reasonable time, each step is. Either way the same program
    serves every number of steps, radius and step size.

    Args:
      logits, variables: the classifier; `logits` and `loss` are static.
      images, labels, index: a batch; see `jrobust.attacks.pgd`.
      key, threat, step_size, random_start: see there; radius and step size may be arrays.
      num_steps: where to stop, each larger than the one before.
      restarts: of random starts; for each stop and image the worst run: a misclassified one, then that of highest loss.
      loss: what is maximised, a function that is the same object each time.
    """
    arguments = (logits, variables, images, labels)

    def ascend(x: jax.Array, count: int) -> jax.Array:
        if not loops.unrolled():
            return _steps(*arguments, x, threat, step_size, jnp.int32(count), loss=loss)
        for _ in range(count):
            x = _step(*arguments, x, threat, step_size, loss=loss)
        return x

    found: list[jax.Array] = []
    for run in range(restarts):
        run_key = jax.random.fold_in(key, run) if restarts > 1 else key  # as pgd(restarts=...) numbers its runs
        x, done = _start(images, index, run_key, threat) if random_start else images, 0
        for i, stop in enumerate(num_steps):
            x, done = ascend(x, stop - done), stop
            if run == 0:
                found.append(x)
            else:
                found[i] = _worse(logits, variables, labels, found[i], x, loss=loss)
    return found


@jax.jit
def _start(images: jax.Array, index: jax.Array, key: jax.Array, threat: Threat) -> jax.Array:
    return jax.vmap(threat.random_start)(keys.per_example(key, index), images)


def _one_step(logits, variables, images, labels, x, threat, step_size, loss) -> jax.Array:
    objective = untargeted(lambda images: logits(variables, images), labels, loss)
    return pgd(
        objective, images, threat=threat, step_size=step_size, num_steps=1, random_start=False, start=x
    ).adv_images


_step = jax.jit(_one_step, static_argnums=0, static_argnames="loss")


@functools.partial(jax.jit, static_argnums=0, static_argnames="loss")
def _steps(logits, variables, images, labels, x, threat, step_size, count, *, loss) -> jax.Array:
    def body(_: jax.Array, x: jax.Array) -> jax.Array:
        return _one_step(logits, variables, images, labels, x, threat, step_size, loss)

    return jax.lax.fori_loop(0, count, body, x)


@functools.partial(jax.jit, static_argnums=0, static_argnames="loss")
def _worse(logits, variables, labels, first, second, *, loss) -> jax.Array:
    objective = untargeted(lambda images: logits(variables, images), labels, loss)
    (loss1, success1), (loss2, success2) = objective(first), objective(second)
    higher = jnp.nan_to_num(loss2, nan=-jnp.inf) >= jnp.nan_to_num(loss1, nan=-jnp.inf)
    second_wins = jnp.where(success1 == success2, higher, success2)
    return jnp.where(second_wins[:, None, None, None], second, first)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "num_steps"))
def craft_with_memory(
    logits: Logits,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    key: jax.Array,
    threat: Threat,
    step_size: jax.Array,
    *,
    method: str,
    num_steps: int,
) -> jax.Array:
    """Return the last iterates of an attack of `jrobust.attacks.momentum`, one program for each number of steps."""
    attack = getattr(momentum, method)
    arguments = (functools.partial(logits, variables), images, labels, key)
    options = {"threat": threat, "step_size": step_size, "num_steps": num_steps, "index": index}
    return attack(*arguments, **options).adv_images


@functools.partial(jax.jit, static_argnums=(0, 7))
def search(
    logits: Logits,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    key: jax.Array,
    threat: Threat,
    attack: Iterative,
) -> jax.Array:
    """Return the images that a black-box `attack` (static) finds, the images themselves where it finds none.

    A rolled loop on every backend: only gradients of convolutions are slow inside one on CPU, and it takes none.
    """
    problem = Problem.of(images, labels, threat, key, index=index)
    return iterative.run(attack, functools.partial(logits, variables), problem, until_broken=True).adv_images


@jax.jit
def size(images: jax.Array, adv_images: jax.Array) -> Size:
    """Return how far `adv_images` lie from `images`, and their range."""
    delta = (adv_images - images).reshape(images.shape[0], -1)
    flat = adv_images.reshape(images.shape[0], -1)
    return Size(jnp.abs(delta).max(1), jnp.linalg.norm(delta, axis=1), flat.min(1), flat.max(1))


@functools.partial(jax.jit, static_argnums=0)
def health(logits: Logits, variables: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two bool[B] that betray a useless attack: the input gradient is exactly zero; the logits are a softmax."""
    objective = untargeted(lambda x: logits(variables, x), labels)
    gradient = jax.grad(lambda x: objective(x)[0].sum())(images)
    scores = logits(variables, images)
    zero = jnp.abs(gradient).reshape(images.shape[0], -1).max(1) == 0
    return zero, looks_like_probabilities(scores)
