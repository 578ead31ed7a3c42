"""The compiled attack of the attribution suite: its settings, its maps, and where Kendall's tau is computed."""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrobust import units
from jrobust.attacks import attribution as attacks
from jrobust.attributions import agreement, integrated
from jrobust.errors import InputError, unknown
from jrobust.evaluation.subject import Subject

PRESETS = {"ifia_art": attacks.ifia_art, "ifia_strict": attacks.ifia_strict}
# Kendall on the device compares all pairs of pixels: from this many pixels on the host is used, in n log n.
HOST_PIXELS = 4096
DEVICE_PIXELS = 46_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """The attack on the top k pixels (IFIA) and the maps; radii are text in pixel units of [0, 1].

    Attributes:
      preset: "ifia_art", the attack of the paper's released code, or "ifia_strict", a stronger one.
      eps, step_size, num_steps, top_k: of the attack; `top_k` is also the k of IN.
      num_points: points of the path of integrated gradients; `chunk` of them are in memory at once.
      beta: sharpness of the softplus that replaces ReLU where the attack differentiates the map.
      sweep: radii of the curve, same step size and number of steps; () for none.
    """

    preset: str = "ifia_art"
    eps: str = "8/255"
    step_size: str = "1/255"
    num_steps: int = 50
    top_k: int = 100
    num_points: int = 100
    chunk: int = 10
    beta: float = 50.0
    sweep: tuple[str, ...] = ()

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS)
        for radius in (self.eps, self.step_size, *self.sweep):
            units.parse(radius)
        if min(self.num_steps, self.top_k, self.num_points, self.chunk) < 1:
            raise InputError(
                f"num_steps={self.num_steps}, top_k={self.top_k}, num_points={self.num_points}, chunk={self.chunk}:"
                " expected numbers of at least 1"
            )

    def attack(self) -> attacks.IfiaSettings:
        """Return the preset with these numbers."""
        return PRESETS[self.preset](
            eps=self.eps, step_size=units.number(self.step_size), num_steps=self.num_steps, top_k=self.top_k
        )

    def gradient_steps(self) -> int:
        """Return the steps an image costs: those of all runs; the last iterate takes none if it is not judged."""
        attack = self.attack()
        return (attack.random_starts + attack.clean_start) * (self.num_steps - (not attack.judge_last))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("settings", "on_host"))
def _ifia(
    logits, variables, images, labels, index, key, eps, *, settings: Settings, on_host: bool
) -> attacks.IfiaResult:
    def logits_fn(x):
        return logits(variables, x)

    def smooth_fn(x):
        return logits(variables, x, beta=settings.beta)

    attack = dataclasses.replace(settings.attack(), eps=eps)
    path: dict[str, Any] = {"num_points": settings.num_points, "chunk": settings.chunk}
    judge = integrated.ig_logit(logits_fn, labels, **path)
    return attacks.ifia(
        logits_fn,
        images,
        labels,
        key,
        judge=judge,
        direction=integrated.ig_logit(smooth_fn, labels, detach_factor=attack.detach_factor, **path),
        agreement=_Overlap() if on_host else agreement,
        settings=attack,
        metrics={"ce": integrated.ig_ce(logits_fn, labels, **path), "logit": judge},
        index=index,
    )


class _Overlap:
    """The measures of likeness without Kendall on all pixels, which is left to the host."""

    top_k_intersection = staticmethod(agreement.top_k_intersection)
    masked_kendall = staticmethod(agreement.masked_kendall)

    @staticmethod
    def kendall(reference: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.full(reference.shape[:-1], jnp.nan)


def attack(
    subject: Subject, batch: dict[str, Any], key: jax.Array, eps: float, settings: Settings
) -> attacks.IfiaResult:
    """Attack a batch; the radius is traced, so another one does not compile again."""
    pixels = batch["image"].shape[1] * batch["image"].shape[2]
    on_host = pixels > HOST_PIXELS and settings.attack().judge == "top_k"
    arguments = (batch["image"], batch["label"], batch["index"], key, jnp.float32(eps))
    result = _ifia(
        subject.logits, subject.variables, *arguments, settings=dataclasses.replace(settings, sweep=()), on_host=on_host
    )
    if not on_host:
        return result
    kendall = {}
    with ThreadPoolExecutor() as pool:
        for name in result.clean_maps:
            pairs = zip(np.asarray(result.clean_maps[name]), np.asarray(result.adv_maps[name]), strict=True)
            tau = np.array(list(pool.map(lambda pair: float(agreement.kendall_scipy(*pair)), pairs)), np.float32)
            kendall[name] = np.where(np.asarray(result.failed), 1.0, tau)
    return result._replace(kendall=kendall)
