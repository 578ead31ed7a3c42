"""Targeted attacks on attributions: images that are classified the same, with the saliency map of another image.

Maps are functions as in `jrobust.attacks.attribution`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jrobust import loops
from jrobust.attacks.attribution import LogitsFn, Radius, SaliencyFn, check_top_k, length, share_on
from jrobust.attacks.pgd import AttackResult, pgd
from jrobust.attacks.threat import Threat


def targeted_topk(
    logits_fn: LogitsFn,
    images: jax.Array,
    target_maps: jax.Array,
    key: jax.Array | None = None,
    *,
    direction: SaliencyFn,
    threat: Threat,
    step_size: Radius,
    num_steps: int,
    top_k: int,
    random_start: bool = False,
    index: jax.Array | None = None,
    unroll: bool | None = None,
) -> AttackResult:
    """Draw importance onto the top k pixels of another image's map (the targeted mode of Singh et al. 2020's CUB code).

    Ascent on sum_{p in T} M(x')_p with T the top k of `target_maps`; the last iterate whose prediction is that of the
    image itself is returned.

    Args:
      logits_fn: images -> logits float[B, K], the network as it classifies.
      images: float[B, H, W, C] in [0, 1].
      target_maps: float[B, H * W], the target images' maps.
      key: for a random start; see `pgd`.
      direction: M, differentiated (softplus).
      threat: `linf(eps)` or `l2(eps)`.
      step_size: in pixel units of [0, 1].
      num_steps: gradient evaluations.
      top_k: size of T.
      random_start: see `pgd`.
      index: see `pgd`.
      unroll: see `pgd`.

    Returns:
      `AttackResult`: `loss` is the share of importance on T, in [0, 1]; `steps` tells which iterate was returned: 0
      without a random start means that none kept its prediction, as does success False with one (the image comes back).
    """
    check_top_k(top_k, images)
    images = jax.lax.stop_gradient(images)
    predictions = jnp.argmax(logits_fn(images), axis=-1)
    target = jax.lax.top_k(target_maps, top_k)[1]

    def objective(candidates: jax.Array) -> tuple[jax.Array, jax.Array]:
        same = jnp.argmax(logits_fn(candidates), axis=-1) == predictions
        return share_on(direction(candidates), target), same

    result = pgd(
        objective,
        images,
        key,
        threat=threat,
        step_size=length(step_size),
        num_steps=num_steps,
        random_start=random_start,
        select="any_adv",  # the most recent iterate that the objective calls a success
        index=index,
        unroll=unroll,
    )
    return result._replace(adv_images=jnp.where(result.success[:, None, None, None], result.adv_images, images))


class DombrowskiResult(NamedTuple):
    """What `targeted_dombrowski` found, one entry an example; nothing in it carries a gradient.

    Attributes:
      adv_images: float[B, H, W, C] in [0, 1]; no ball around the image.
      map_error: float[B], mean over pixels of (h(x') - h_target)**2, by the network itself (ReLU).
      output_error: float[B], mean over classes of (p(x') - p(x))**2, likewise.
    """

    adv_images: jax.Array
    map_error: jax.Array
    output_error: jax.Array


def targeted_dombrowski(
    logits_fn: Callable[[jax.Array, jax.Array | None], jax.Array],
    saliency_fn: Callable[[jax.Array, jax.Array | None], jax.Array],
    images: jax.Array,
    target_maps: jax.Array,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_steps: int = 1500,
    learning_rate: float = 2e-4,
    map_weight: float = 1e11,
    output_weight: float = 1e6,
    beta: tuple[float, float] = (10.0, 100.0),
    unroll: bool | None = False,
) -> DombrowskiResult:
    """Make an image's map that of another image while the class probabilities stay (Dombrowski et al. 2019, Eq. 3).

        minimise   map_weight * MSE(h(x'), h_target) + output_weight * MSE(p(x'), p(x))

    by Adam on z = (x - mean) / std, cut to valid pixels after every step; h is the map scaled to sum 1, p the softmax.
    In step i of N the ReLUs are softplus of sharpness beta_0 (beta_1 / beta_0)**(i / N); p(x) and the errors in the
    result use the ReLU. There is no ball: the distance is kept small by the learning rate alone.

    Args:
      logits_fn: (images, beta) -> logits float[B, K]; beta is a traced number, or None for the ReLU.
      saliency_fn: (images, beta) -> float[B, H * W], of the image's own class: `ig_probability` with 30 points and
        `baseline=mean`, which is the zero of normalised space.
      images: float[B, H, W, C] in [0, 1].
      target_maps: float[B, H * W], scaled as saliency_fn's.
      mean, std: of the network's normalisation, one number a channel.
      num_steps: N.
      learning_rate: of Adam, in normalised space.
      map_weight, output_weight: of the two errors.
      beta: the first and the last sharpness.
      unroll: the form of the loop; rolled even on CPU by default, because 1500 steps do not compile unrolled.
    """
    images = jax.lax.stop_gradient(images)
    shift, scale = jnp.asarray(mean, images.dtype), jnp.asarray(std, images.dtype)
    h_target, p_clean = target_maps / target_maps.shape[-1], jax.nn.softmax(logits_fn(images, None))
    adam = optax.adam(learning_rate)

    def errors(x: jax.Array, sharpness: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        maps, probabilities = saliency_fn(x, sharpness), jax.nn.softmax(logits_fn(x, sharpness))
        map_error = jnp.mean((maps / maps.shape[-1] - h_target) ** 2, axis=-1)
        return map_error, jnp.mean((probabilities - p_clean) ** 2, axis=-1)

    def step(i: jax.Array, carry: tuple) -> tuple:
        z, adam_state = carry
        sharpness = beta[0] * (beta[1] / beta[0]) ** (i / num_steps)

        def loss(z: jax.Array) -> jax.Array:
            map_error, output_error = errors(z * scale + shift, sharpness)
            return jnp.sum(map_weight * map_error + output_weight * output_error)

        updates, adam_state = adam.update(jnp.nan_to_num(jax.grad(loss)(z)), adam_state)
        z = jnp.clip(z + updates, (0 - shift) / scale, (1 - shift) / scale)
        return z, adam_state

    z = (images - shift) / scale
    z, _ = loops.fori_loop(0, num_steps, step, (z, adam.init(z)), unroll=unroll)
    # Unmoved pixels come back to the bit, not through the rounding of the normalisation.
    x = jnp.where(z == (images - shift) / scale, images, jnp.clip(z * scale + shift, 0, 1))
    return jax.lax.stop_gradient(DombrowskiResult(x, *errors(x, None)))
