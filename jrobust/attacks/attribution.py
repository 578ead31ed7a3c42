"""The attack on the top k pixels of an attribution: same look, same class, another saliency map.

Attacks on attributions take saliency maps as functions `images float[B, H, W, C] -> float[B, H * W]`, non-negative and
summing to H * W, such as `jrobust.attributions.integrated.ig_logit` makes. They are meant to be called inside a jitted
function whose arguments are the network's variables, where these functions are made as closures. Those that draw a map
towards another image's are in `targeted_attribution`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jrobust import units
from jrobust.attacks.pgd import AttackResult, pgd
from jrobust.attacks.threat import linf
from jrobust.errors import InputError

LogitsFn = Callable[[jax.Array], jax.Array]
SaliencyFn = Callable[[jax.Array], jax.Array]
Radius = str | float | Fraction | jax.Array


class Agreement(Protocol):
    """The measures of likeness an attack needs, float[..., n] x float[..., n] -> float[...].

    The module `jrobust.attributions.agreement` is one; attacks do not import it, as they know nothing of attributions.
    """

    def top_k_intersection(self, reference: jax.Array, other: jax.Array, k: int) -> jax.Array:
        """Share of the k largest that are the same."""
        ...

    def kendall(self, reference: jax.Array, other: jax.Array) -> jax.Array:
        """Kendall's tau-b; NaN where undefined."""
        ...

    def masked_kendall(self, reference: jax.Array, other: jax.Array, k: int) -> jax.Array:
        """Kendall's tau-b after zeroing both outside the k largest of the reference."""
        ...


@dataclasses.dataclass(frozen=True)
class IfiaSettings:
    """Settings of the iterative feature importance attack on the top k pixels; see `ifia_art` and `ifia_strict`.

    Attributes:
      eps, step_size: in pixel units of [0, 1], numbers or texts such as "8/255"; `eps` may be a traced array.
      num_steps: steps of sign ascent.
      top_k: pixels whose importance is pushed down (100 at 32 x 32, 1000 at 128 x 128).
      random_starts: independent runs from random points of the ball.
      clean_start: one more run, from the image itself.
      judge_last: whether the result of the last step is a candidate.
      judge: "top_k" compares the maps after zeroing both outside the clean map's top k, "full" on all pixels.
      allow_unperturbed: whether an iterate that equals the image is a candidate.
      detach_factor: for who builds the direction map: whether (x - baseline) is a constant in its derivative.
      count_failures: for who averages: whether images without an admissible iterate count as IN = K = 1, or are left
        out.
    """

    eps: Radius = "8/255"
    step_size: Radius = "1/255"
    num_steps: int = 50
    top_k: int = 100
    random_starts: int = 1
    clean_start: bool = False
    judge_last: bool = False
    judge: Literal["top_k", "full"] = "top_k"
    allow_unperturbed: bool = True
    detach_factor: bool = True
    count_failures: bool = False


def ifia_art(
    *, eps: Radius = "8/255", step_size: Radius = "1/255", num_steps: int = 50, top_k: int = 100
) -> IfiaSettings:
    """Return the attack of the released code of Singh et al. 2020: the one behind the published IN and K.

    One random start; candidates are iterates 0 .. num_steps - 1; the lowest Kendall's tau inside the clean top k wins;
    the derivative leaves out the factor (x - baseline); images without an admissible iterate are left out of the means.
    """
    return IfiaSettings(eps, step_size, num_steps, top_k)


def ifia_strict(
    *, eps: Radius = "8/255", step_size: Radius = "1/255", num_steps: int = 50, top_k: int = 100
) -> IfiaSettings:
    """Return a stronger and fairer attack, for comparisons that do not have to match the paper.

    Three random starts and a clean one; candidates are all iterates, random starts and last ones included, that differ
    from the image; the lowest Kendall's tau over all pixels wins; exact derivative; an image without an admissible
    iterate counts as IN = K = 1, and the share of such images is to be reported.
    """
    return IfiaSettings(
        eps,
        step_size,
        num_steps,
        top_k,
        random_starts=3,
        clean_start=True,
        judge_last=True,
        judge="full",
        allow_unperturbed=False,
        detach_factor=False,
        count_failures=True,
    )


class IfiaResult(NamedTuple):
    """What the attack found, one entry an example; nothing in it carries a gradient.

    Attributes:
      adv_images: float[B, H, W, C], the admissible iterate of lowest tau; the image itself where there is none.
      failed: bool[B], no iterate was admissible.
      tau: float[B], the judge's tau between the clean map and that of `adv_images`; 1 where failed.
      clean_maps, adv_maps: for every metric map its values float[B, H * W] at the images and at `adv_images`.
      top_k_intersection, kendall: for every metric map IN and K, float[B] in [0, 1] and [-1, 1]; 1 where failed. K is
        NaN where a map is constant: leave those out of means and say how many they were.
    """

    adv_images: jax.Array
    failed: jax.Array
    tau: jax.Array
    clean_maps: dict[str, jax.Array]
    adv_maps: dict[str, jax.Array]
    top_k_intersection: dict[str, jax.Array]
    kendall: dict[str, jax.Array]


def ifia(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    judge: SaliencyFn,
    direction: SaliencyFn,
    agreement: Agreement,
    settings: IfiaSettings,
    metrics: Mapping[str, SaliencyFn] | None = None,
    index: jax.Array | None = None,
    unroll: bool | None = None,
) -> IfiaResult:
    """Move importance away from the top k pixels while the prediction stays (Ghorbani et al. 2019, Alg. 1).

        minimise   sum_{p in T} M(x')_p   over the Linf ball of radius eps, by sign steps;
        return     argmin tau(J(x), J(x'))   over visited x' with argmax f(x') = y,

    T the top k pixels of J(x), M the `direction` map (of the network with softplus, whose second derivative is not
    zero), J the `judge` map (of the network itself). tau is only compared, never differentiated.

    Args:
      logits_fn: images -> logits float[B, K], the network as it classifies (ReLU).
      images: float[B, H, W, C] in [0, 1]; only correctly classified ones make sense.
      labels: int[B].
      key: a typed PRNG key; example i draws from its fold with `index[i]`. None without random starts.
      judge: chooses T and the iterate.
      direction: differentiated; built with `detach_factor=settings.detach_factor`.
      agreement: the module `jrobust.attributions.agreement`, or anything with its three functions.
      settings: `ifia_art(...)` or `ifia_strict(...)`.
      metrics: maps on which IN and K are measured; {"judge": judge} by default.
      index: int32[B], the examples' numbers in the data set; 0 .. B-1 by default.
      unroll: the form of the loop over steps; see `jrobust.loops`. Give the same to the maps.

    Raises:
      InputError: a setting that has no meaning for these images.
    """
    images = jax.lax.stop_gradient(images)
    k = settings.top_k
    _check_settings(settings, images)
    clean_map = judge(images)
    top = jax.lax.top_k(clean_map, k)[1]

    def tau(candidates: jax.Array) -> jax.Array:
        maps = judge(candidates)
        if settings.judge == "top_k":
            return agreement.masked_kendall(clean_map, maps, k)
        return agreement.kendall(clean_map, maps)

    def score(candidates: jax.Array) -> jax.Array:
        admissible = jnp.argmax(logits_fn(candidates), axis=-1) == labels
        if not settings.allow_unperturbed:
            admissible &= jnp.any(candidates != images, axis=(1, 2, 3))
        value = tau(candidates)
        return jnp.where(admissible & ~jnp.isnan(value), -value, -jnp.inf)

    def attack(restarts: int) -> AttackResult:
        return pgd(
            lambda candidates: -share_on(direction(candidates), top),
            images,
            key,
            threat=linf(settings.eps),
            step_size=length(settings.step_size),
            num_steps=settings.num_steps - (not settings.judge_last),
            random_start=restarts > 0,
            restarts=max(restarts, 1),
            select=score,
            index=index,
            unroll=unroll,
        )

    runs = [attack(0)] if settings.clean_start else []
    runs += [attack(settings.random_starts)] if settings.random_starts else []
    adv_images, scores = images, jnp.full(images.shape[:1], -jnp.inf)
    for run in runs:
        # Not the score alone: where nothing was admissible the run hands back the image, which may be.
        run_scores = jnp.where(run.success, score(run.adv_images), -jnp.inf)
        better = run_scores > scores
        adv_images = jnp.where(better[:, None, None, None], run.adv_images, adv_images)
        scores = jnp.where(better, run_scores, scores)
    failed = scores == -jnp.inf

    maps = metrics or {"judge": judge}
    clean = {name: saliency_fn(images) for name, saliency_fn in maps.items()}
    adv = {name: saliency_fn(adv_images) for name, saliency_fn in maps.items()}
    result = IfiaResult(
        adv_images=adv_images,
        failed=failed,
        tau=jnp.where(failed, 1.0, -scores),
        clean_maps=clean,
        adv_maps=adv,
        top_k_intersection={
            name: jnp.where(failed, 1.0, agreement.top_k_intersection(clean[name], adv[name], k)) for name in maps
        },
        kendall={name: jnp.where(failed, 1.0, agreement.kendall(clean[name], adv[name])) for name in maps},
    )
    return jax.lax.stop_gradient(result)


def share_on(maps: jax.Array, indices: jax.Array) -> jax.Array:
    """Return the part of each map [B, n] (of sum n) that lies on its pixels indices [B, k]: float[B] in [0, 1]."""
    return jnp.take_along_axis(maps, indices, axis=-1).sum(-1) / maps.shape[-1]


def length(value: Radius) -> float | jax.Array:
    """Return a length in pixel units as a number; an array, traced or not, as it is."""
    return value if isinstance(value, jax.Array) else units.number(value)


def _check_settings(settings: IfiaSettings, images: jax.Array) -> None:
    if settings.judge not in ("top_k", "full"):
        raise ValueError(f"unknown judge {settings.judge!r}: expected 'top_k' or 'full'")
    if not settings.clean_start and settings.random_starts < 1:
        raise InputError("the attack has no run: set random_starts to 1 or more, or clean_start")
    if settings.num_steps < 1:
        raise InputError(f"num_steps={settings.num_steps}: the attack on attributions needs at least 1 step")
    check_top_k(settings.top_k, images)


def check_top_k(top_k: int, images: jax.Array) -> None:
    """Raise InputError where the images, float[B, H, W, C], do not have `top_k` pixels."""
    pixels = images.shape[1] * images.shape[2]
    if not 1 <= top_k <= pixels:
        raise InputError(f"top_k={top_k} of images with {pixels} pixels: expected a number from 1 to {pixels}")
