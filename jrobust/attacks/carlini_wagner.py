"""The attacks of Carlini and Wagner 2017, as later papers run them in Linf, and in L2."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jrobust import loops, units
from jrobust.attacks.iterative import select_rows
from jrobust.attacks.losses import cw_loss, margin, untargeted
from jrobust.attacks.pgd import AttackResult, pgd
from jrobust.attacks.threat import Threat, finite, linf

LogitsFn = Callable[[jax.Array], jax.Array]


def cw_linf(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat: Threat | None = None,
    step_size: str | float | Fraction | jax.Array | None = None,
    num_steps: int = 30,
    confidence: float = 50.0,
    unroll: bool | None = None,
) -> AttackResult:
    """Run PGD on the loss of Carlini and Wagner with confidence 50: what FSR and its kin report as C&W.

    Starts at the image, returns the last iterate. Guarantees are those of `pgd`; `loss` is `cw_loss`, never positive.

    Args:
      logits_fn: images float[B, H, W, C] in [0, 1] -> logits float[B, K].
      images: float[B, H, W, C] in [0, 1].
      labels: int[B].
      threat: `linf("8/255")` by default.
      step_size: a tenth of the radius by default.
      num_steps: gradient evaluations.
      confidence: a lead of a wrong class beyond which nothing is gained.
      unroll: see `pgd`.
    """
    threat = linf("8/255") if threat is None else threat
    length = 0.1 * threat.eps if step_size is None else step_size
    return pgd(
        untargeted(logits_fn, labels, functools.partial(cw_loss, confidence=confidence)),
        images,
        threat=threat,
        step_size=length if isinstance(length, jax.Array) else units.number(length),
        num_steps=num_steps,
        random_start=False,
        unroll=unroll,
    )


class _Search(NamedTuple):
    w: jax.Array
    adam: optax.OptState
    adv_images: jax.Array
    distance: jax.Array  # squared; infinite where nothing was found
    loss: jax.Array
    steps: jax.Array


def cw_l2(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    weight: float = 1.0,
    confidence: float = 0.0,
    num_steps: int = 50,
    learning_rate: float = 0.01,
    unroll: bool | None = None,
) -> AttackResult:
    """Look for the nearest misclassified image, with no ball around the image (Carlini and Wagner 2017, Section VI.A).

        minimise ||x' - x||_2^2 + weight * max(z_y - max_{k != y} z_k, -confidence),   x' = (tanh(w) + 1) / 2

    over w by Adam from the image. Per example the misclassified x' of smallest distance is returned. Defaults are those
    of torchattacks; as there `weight` stays as it is, without the paper's binary search. Its early stop is left out: it
    looks at the cost of the whole batch, so that an image's result would depend on its neighbours.

    Guarantees: as `pgd`, but for the ball. Pixels at 0 and 1, which tanh does not reach, begin at 1e-6 from there; the
    image itself, to the bit, is the first candidate.

    Args:
      logits_fn: images float[B, H, W, C] in [0, 1] -> logits float[B, K].
      images: float[B, H, W, C] in [0, 1].
      labels: int[B].
      weight: c, of misclassification against distance.
      confidence: kappa: a lead of the wrong class that a returned image has at least.
      num_steps: of Adam.
      learning_rate: of Adam, in the space of w.
      unroll: see `jrobust.loops`.

    Returns:
      `AttackResult`: `loss` is the margin max_{k != y} z_k - z_y of what is returned, `steps` says after how many steps
      it was found; an example without success gets its image back.
    """
    images = jax.lax.stop_gradient(images)
    wide = jnp.promote_types(images.dtype, jnp.float32)
    x = images.astype(wide)
    adam = optax.adam(learning_rate)

    def to_images(w: jax.Array) -> jax.Array:
        return (jnp.tanh(w) + 1) / 2

    def cost(w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x_adv = to_images(w)
        distance = jnp.sum((x_adv - x) ** 2, axis=(1, 2, 3))
        lead, wrong = classify(x_adv.astype(images.dtype))
        return jnp.sum(distance + weight * jnp.maximum(-lead, -confidence)), (x_adv, distance, lead, wrong)

    def classify(x_adv: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(x_adv)
        return margin(logits, labels).astype(wide), jnp.argmax(logits, axis=-1) != labels

    def judge(search: _Search, t: jax.Array | int, candidate, distance, lead, wrong) -> _Search:
        found = wrong & (lead >= confidence) & (distance < search.distance)
        new = candidate.astype(images.dtype), distance, lead, jnp.full(labels.shape, t, jnp.int32)
        old = search.adv_images, search.distance, search.loss, search.steps
        adv_images, distance, loss, steps = select_rows(found, new, old)
        return search._replace(adv_images=adv_images, distance=distance, loss=loss, steps=steps)

    def step(t: jax.Array, search: _Search) -> _Search:
        gradient, candidate = jax.grad(cost, has_aux=True)(search.w)
        search = judge(search, t, *candidate)
        updates, state = adam.update(finite(gradient), search.adam)
        return search._replace(w=search.w + updates, adam=state)

    w = jnp.arctanh(2 * jnp.clip(x, 1e-6, 1 - 1e-6) - 1)
    nothing = jnp.full(labels.shape, jnp.inf, wide)
    lead, wrong = classify(images)
    search = _Search(w, adam.init(w), images, nothing, lead, jnp.zeros(labels.shape, jnp.int32))
    search = judge(search, 0, x, jnp.zeros_like(nothing), lead, wrong)
    search = loops.fori_loop(0, num_steps, step, search, unroll=unroll)
    search = judge(search, num_steps, *cost(search.w)[1])
    success = jnp.isfinite(search.distance)
    return jax.lax.stop_gradient(AttackResult(search.adv_images, success, search.loss, search.steps))
