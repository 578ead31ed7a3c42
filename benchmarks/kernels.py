"""Hot paths that are no training steps, as functions of a network, and what they cost in forward passes by hand.

Each is made of a network and the section `evaluation.attribution` of a config, and is a function of parameters, state,
images and labels; with it come the gradient steps of its attack and the forward passes that it is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jrobust.attacks import apgd_runs, attribution, linf
from jrobust.attributions import agreement, integrated
from jrobust.models.network import Network

IFIA_STEPS = 2  # iterates that are judged; there is a gradient between them


def _ig(network: Network, section: Any) -> tuple[Callable, int, float]:
    """Integrated gradients of the logit, the points that are in memory at once: each a forward pass and its reverse."""

    def attributed(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return _maps(network, params, state, labels, section, None)(images)

    return attributed, 0, 2.0 * section.chunk


def _ifia(network: Network, section: Any) -> tuple[Callable, int, float]:
    """Two iterates of the attack on attributions, and one gradient.

    A map of m points is 2 m passes: of the clean image, of each iterate and of the one chosen, the last three with a
    prediction. The gradient of a map is 6 m: its value, the same points once more, and their reverse.
    """
    settings = attribution.ifia_art(num_steps=IFIA_STEPS, top_k=min(section.top_k, network.input_shape[0] ** 2 // 4))

    def attacked(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        judge = _maps(network, params, state, labels, section, None)
        smooth = _maps(network, params, state, labels, section, section.beta)
        return attribution.ifia(
            lambda x: network.apply(params, state, x).logits,
            images,
            labels,
            jax.random.key(0),
            judge=judge,
            direction=smooth,
            agreement=agreement,
            settings=settings,
        ).adv_images

    judged = IFIA_STEPS + 1
    return attacked, IFIA_STEPS - 1, 2.0 * section.chunk * (judged + 1) + judged + 6.0 * section.chunk


def _maps(network: Network, params: Any, state: Any, labels: jax.Array, section: Any, beta: float | None) -> Callable:
    """Return the map of integrated gradients with as many points as are in memory at once."""

    def logits(x: jax.Array) -> jax.Array:
        return network.apply(params, state, x, beta=beta).logits

    return integrated.ig_logit(logits, labels, num_points=section.chunk, detach_factor=beta is not None)


def _apgd(network: Network, section: Any) -> tuple[Callable, int, float]:
    """The start and one iteration of APGD-CE: each a forward pass and the reverse in the image."""

    def attacked(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        def logits(x: jax.Array) -> jax.Array:
            return network.apply(params, state, x).logits

        threat = linf(8 / 255)
        return apgd_runs.apgd(
            logits, images, labels, jax.random.key(0), threat=threat, num_steps=1, unroll=True
        ).adv_images

    return attacked, 2, 4.0


CALLS = {"ig": _ig, "ifia": _ifia, "apgd": _apgd}
