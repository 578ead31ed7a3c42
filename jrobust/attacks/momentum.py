"""Attacks made to transfer between networks: momentum, lookahead, diverse inputs and smoothed gradients, on `pgd`.

    g_i = mu g_{i-1} + h / mean|h|,   x_{i+1} = project(x_i + step_size * ascend(g_i)),   h = W * grad loss(T(x))

where MI-FGSM has neither W nor T, and NI-FGSM takes the gradient at x + mu step_size g_{i-1}. Defaults are those of
torchattacks; the budget of the first papers is eps 16/255 in 10 steps of a tenth of it.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jrobust import keys, units
from jrobust.attacks.diversity import Diversity
from jrobust.attacks.losses import Loss, cross_entropy, untargeted
from jrobust.attacks.pgd import AttackResult, pgd
from jrobust.attacks.threat import Threat, linf
from jrobust.errors import InputError

LogitsFn = Callable[[jax.Array], jax.Array]
StepSize = str | float | Fraction | jax.Array


def mi_fgsm(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    threat: Threat | None = None,
    step_size: StepSize = "2/255",
    num_steps: int = 10,
    decay: float = 1.0,
    diversity: Diversity | None = None,
    kernel: int | None = None,
    lookahead: bool = False,
    loss: Loss = cross_entropy,
    random_start: bool = False,
    index: jax.Array | None = None,
    unroll: bool | None = None,
) -> AttackResult:
    """Attack by MI-FGSM (Dong et al. 2018, Alg. 1): gradients are scaled to mean 1 and accumulated. Last iterate.

    The other attacks of this file are this one with other defaults, so all of their parts can be combined: TI-DIM is
    `ti_fgsm(..., decay=1.0, diversity=Diversity(probability=0.7))`, M-DI-FGSM is `di_fgsm(..., decay=1.0)`.
    Guarantees are those of `pgd`.

    Args:
      logits_fn: images float[B, H, W, C] in [0, 1] -> logits float[B, K].
      images: float[B, H, W, C] in [0, 1].
      labels: int[B].
      key: for diversity and random starts: example i draws from `fold_in(key, index[i])`.
      threat: `linf("8/255")` by default.
      step_size: a number, or a text such as "2/255", in pixel units of [0, 1].
      num_steps: gradient evaluations.
      decay: mu; 0 for no momentum.
      diversity: T, with a new draw for every image in every step.
      kernel: side of W, the Gaussian of `smooth`.
      lookahead: take the gradient ahead of x, as NI-FGSM does.
      loss: maximised.
      random_start: begin at a random point of the ball instead of at the image.
      index: int32[B], the examples' numbers in the data set; 0 .. B-1 by default.
      unroll: see `pgd`.
    """
    threat = linf("8/255") if threat is None else threat
    length = step_size if isinstance(step_size, jax.Array) else units.number(step_size)
    if key is None:
        if diversity or random_start:
            raise ValueError("diversity and random starts need a key: pass key=...")
        key = jax.random.key(0)  # never drawn from
    judge = untargeted(logits_fn, labels, loss)
    settings: dict[str, Any] = {}
    objective: Callable[..., Any] = judge
    if diversity:
        index = jnp.arange(images.shape[0]) if index is None else index
        start_key, draw_key = jax.random.split(key)
        draws, key = keys.per_example(draw_key, index), start_key

        def objective(x: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            step_keys = jax.vmap(lambda k: jax.random.fold_in(k, step))(draws)
            return loss(logits_fn(diversity(x, step_keys)), labels), step + 1

        settings["state"] = jnp.int32(0)
    parts = [momentum(decay)]
    if kernel:
        parts.insert(0, optax.stateless(lambda gradient, _: smooth(gradient, kernel)))
    if lookahead:

        def ahead(x: jax.Array, state: Any) -> jax.Array:
            memory = state[-1] if threat.norm == "linf" else jax.vmap(threat.ascend)(state[-1])  # of length 1
            return (x + decay * length * memory).astype(x.dtype)

        settings["lookahead"] = ahead
    result = pgd(
        objective,
        images,
        key,
        threat=threat,
        step_size=length,
        num_steps=num_steps,
        random_start=random_start,
        transform=optax.chain(*parts),
        index=index,
        unroll=unroll,
        **settings,
    )
    if diversity:  # judged as it is: the pass that `pgd` makes through T is dropped by the compiler
        value, success = jax.lax.stop_gradient(judge(result.adv_images))
        result = result._replace(loss=value, success=success, state=None)
    return result


def ni_fgsm(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, key: jax.Array | None = None, **settings: Any
) -> AttackResult:
    """Attack by NI-FGSM (Lin et al. 2020): `mi_fgsm` with the gradient taken ahead of x."""
    return mi_fgsm(logits_fn, images, labels, key, **_defaults(settings, lookahead=True))


def di_fgsm(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, key: jax.Array | None = None, **settings: Any
) -> AttackResult:
    """Attack by DI-FGSM (Xie et al. 2019): `mi_fgsm` on inputs changed by `Diversity()`, with `decay=0`."""
    return mi_fgsm(logits_fn, images, labels, key, **_defaults(settings, decay=0.0, diversity=Diversity()))


def ti_fgsm(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, key: jax.Array | None = None, **settings: Any
) -> AttackResult:
    """Attack by TI-FGSM (Dong et al. 2019): `mi_fgsm` on gradients smoothed with `kernel=15`, with `decay=0`.

    Smoothing stands for the mean over shifted copies of the image. The attack of this name in torchattacks has diverse
    inputs as well: pass `diversity=Diversity()` for it.
    """
    return mi_fgsm(logits_fn, images, labels, key, **_defaults(settings, decay=0.0, kernel=15))


def smooth(gradient: jax.Array, kernel: int = 15, sigmas: float = 3.0) -> jax.Array:
    """Convolve float[B, H, W, C] with the outer product of a Gaussian, its density at `kernel` points in +-`sigmas`.

    Weights sum to 1; beyond the edges there are zeros, and the shape stays. `kernel` is odd.
    """
    if kernel % 2 == 0:
        raise InputError(f"kernel={kernel}: expected an odd number of pixels, so that the kernel has a centre")
    weights = np.exp(-(np.linspace(-sigmas, sigmas, kernel) ** 2) / 2)
    height, width = (jnp.asarray(_band(weights / weights.sum(), n), gradient.dtype) for n in gradient.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", height, gradient, width, precision="highest")


def _defaults(settings: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | settings


def _band(weights: np.ndarray, side: int) -> np.ndarray:
    """Return the matrix [side, side] that convolves an axis with the weights, zeros beyond its ends."""
    offset = np.arange(side)[None] - np.arange(side)[:, None] + len(weights) // 2
    inside = (offset >= 0) & (offset < len(weights))
    return np.where(inside, weights[np.clip(offset, 0, len(weights) - 1)], 0)


def momentum(decay: float) -> optax.GradientTransformation:
    """Scale the gradient of each example to mean absolute value 1 and add it to `decay` times what is remembered."""

    def update(gradient: jax.Array, memory: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        mean = jnp.mean(jnp.abs(gradient), axis=range(1, gradient.ndim), keepdims=True)
        # A gradient of zero stays zero; the floor is below any that float32 tells from it.
        memory = decay * memory + gradient / jnp.maximum(mean, 1e-30)
        return memory, memory

    return optax.GradientTransformation(jnp.zeros_like, update)
