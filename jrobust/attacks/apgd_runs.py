"""Attacks made of runs of Auto-PGD: from several starts, towards several targets, all runs as rows of one batch."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks import iterative, losses
from jrobust.attacks.apgd import APGD, LOSSES
from jrobust.attacks.iterative import LogitsFn, Problem
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.selection import best_run
from jrobust.attacks.threat import Threat
from jrobust.errors import unknown


def apgd(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    threat: Threat,
    loss: str = "ce",
    num_steps: int = 100,
    restarts: int = 1,
    start: jax.Array | None = None,
    rho: float = 0.75,
    eot: int = 0,
    random_start: bool = True,
    select: Literal["any_adv", "best_loss"] = "any_adv",
    index: jax.Array | None = None,
    unroll: bool = False,
) -> AttackResult:
    """Attack with Auto-PGD (Croce and Hein 2020): APGD-CE by default, APGD-DLR with `loss="dlr"`.

    Guarantees are those of `pgd`. As in AutoAttack the image itself is no candidate, unless the run begins there: count
    images that are misclassified from the outset on their own.

    Args:
      logits_fn: images float[B, H, W, C] in [0, 1] -> logits float[B, K], for any B: it sees restarts * B images. With
        `eot` it takes (images, typed keys of shape [B]).
      images: float[B, H, W, C] in [0, 1], the centres of the balls.
      labels: int[B].
      key: a typed PRNG key; example i draws from `fold_in(key, index[i])`. Needed if there is anything to draw.
      threat: `linf(eps)` or `l2(eps)`.
      loss: "ce" or "dlr" (at least 3 classes).
      num_steps: iterations.
      restarts: random starts, run as rows of one batch; number r draws from `fold_in(key, r)` if there are several. Per
        example a successful run is kept, then the one of highest loss.
      start: float[B, H, W, C], projected before use; excludes a random start.
      rho: see `APGD`.
      eot: see `APGD`.
      random_start: see `APGD`.
      select: see `APGD`.
      index: int32[B], the examples' numbers in the data set; 0 .. B-1 by default.
      unroll: see `jrobust.attacks.iterative.run`.

    Returns:
      `AttackResult`: the last misclassified iterate and success True, or the image and False. `loss` is the highest
      loss met.

    Raises:
      InputError: an unknown loss, or too few classes for it.
      ValueError: a combination of arguments that has no meaning.
    """
    if loss.startswith("targeted"):
        raise ValueError(f"loss={loss!r} needs targets: use apgd_targeted, or a Problem with targets and iterative.run")
    randomly = random_start and start is None
    if restarts < 1 or (restarts > 1 and not randomly and not eot):
        raise ValueError(f"restarts={restarts}: expected 1, or more with a random start")
    attack = APGD(loss, threat.norm, num_steps, rho, eot, randomly, select)  # type: ignore[arg-type]
    key = _drawing_key(attack, key)
    run_keys = key[None] if restarts == 1 else keys.per_example(key, jnp.arange(restarts))
    targets = jnp.broadcast_to(labels, (restarts, *labels.shape))
    return _run_rows(attack, logits_fn, images, labels, threat, run_keys, targets, index, start, unroll)


def apgd_targeted(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    threat: Threat,
    loss: str = "targeted_dlr",
    num_targets: int = 9,
    num_steps: int = 100,
    start: jax.Array | None = None,
    rho: float = 0.75,
    eot: int = 0,
    random_start: bool = True,
    index: jax.Array | None = None,
    unroll: bool = False,
) -> AttackResult:
    """Attack with APGD-T (Croce and Hein 2020): one run towards each of the likeliest wrong classes.

    All runs are rows of one batch of num_targets * B images. Success is misclassification as any class. Arguments,
    guarantees and result are those of `apgd`; run r, towards the class at rank r + 2 of the clean logits, draws from
    `fold_in(key, r)`.

    Args:
      loss: "targeted_dlr" (at least 4 classes) or "targeted_ce".
      num_targets: runs, at most the number of classes less 1.

    Raises:
      InputError: too few classes for the loss or for the number of targets.
    """
    if not loss.startswith("targeted"):
        raise unknown("targeted loss", loss, [name for name in LOSSES if name.startswith("targeted")])
    attack = APGD(loss, threat.norm, num_steps, rho, eot, random_start and start is None)  # type: ignore[arg-type]
    key = _drawing_key(attack, key)
    index = jnp.arange(images.shape[0]) if index is None else index
    clean = logits_fn(images, keys.per_example(key, index)) if eot else logits_fn(images)
    targets = losses.ranked_targets(jax.lax.stop_gradient(clean), num_targets).T
    run_keys = keys.per_example(key, jnp.arange(num_targets))
    return _run_rows(attack, logits_fn, images, labels, threat, run_keys, targets, index, start, unroll)


def _run_rows(
    attack: APGD,
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    threat: Threat,
    run_keys: jax.Array,
    targets: jax.Array,
    index: jax.Array | None,
    start: jax.Array | None,
    unroll: bool,
) -> AttackResult:
    """Run [R] times on each image, with keys [R] and targets [R, B], as rows of one batch, and keep the best run."""
    runs, size = targets.shape

    def repeat(array: jax.Array) -> jax.Array:
        return jnp.broadcast_to(array, (runs, *array.shape)).reshape(runs * size, *array.shape[1:])

    index = jnp.arange(size) if index is None else index
    row_keys = jax.vmap(lambda k: keys.per_example(k, index))(run_keys).reshape(runs * size)
    labels = labels.astype(jnp.int32)
    problem = Problem(repeat(images), repeat(labels), targets.astype(jnp.int32).reshape(-1), row_keys, threat)
    problem = jax.lax.stop_gradient(problem)
    carry = None if start is None else attack.begin(logits_fn, problem, repeat(start))
    result = iterative.run(attack, logits_fn, problem, carry=carry, unroll=unroll)
    result = jax.tree.map(lambda leaf: leaf.reshape(runs, size, *leaf.shape[1:]), result)
    return best_run(result, result.loss)


def _drawing_key(attack: APGD, key: jax.Array | None) -> jax.Array:
    if key is None:
        if attack.random_start or attack.eot:
            raise ValueError("apgd needs a key for what it draws: pass key=..., or random_start=False")
        return jax.random.key(0)  # never drawn from
    return key
