"""What makes the numbers of an attack doubtful: signs of masked gradients, noise, and attacks that left the ball.

After the checks of the official AutoAttack (Croce and Hein 2020) and Carlini et al. 2019. All are returned as data.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.attacks import losses
from jrobust.attacks.pool_programs import Logits, Sharding, row_keys
from jrobust.attacks.threat import Threat

REPEATS = 5
TOLERANCE = 1e-4  # of two answers to the same question, in logits of length 1
SQUARE_SHARE = 0.002  # of the images; more of them broken by Square alone betray masked gradients


class Flag(NamedTuple):
    """One doubt: its name, and a sentence that says what was found and what it means."""

    name: str
    text: str


class Look(NamedTuple):
    """What a classifier says about N images.

    Attributes:
      logits: float[N, K].
      margin: float[N], max_{k != y} z_k - z_y.
      correct: bool[N]; an image with a logit that is not finite counts as wrong.
      zero_gradient: bool[N], the gradient of the DLR (of the margin for 2 classes) is zero there.
    """

    logits: np.ndarray
    margin: np.ndarray
    correct: np.ndarray
    zero_gradient: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _look(
    logits: Logits, variables: Any, images: jax.Array, labels: jax.Array, *row_keys: jax.Array
) -> tuple[jax.Array, ...]:
    def total(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = logits(variables, images, *row_keys)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        loss = losses.dlr if scores.shape[-1] >= 3 else losses.margin
        return loss(scores, labels).sum(), scores

    gradient, scores = jax.grad(total, has_aux=True)(images)
    zero = jnp.max(jnp.abs(gradient), axis=(1, 2, 3)) == 0
    correct = (jnp.argmax(scores, axis=-1) == labels) & jnp.all(jnp.isfinite(scores), axis=-1)
    return scores, losses.margin(scores, labels), correct, zero


def look(
    logits: Logits,
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    size: int,
    sharding: Sharding = None,
    key: jax.Array | None = None,
    numbers: np.ndarray | None = None,
) -> Look:
    """Ask the classifier about N images in batches of one size, the last one filled up.

    Args:
      logits: `logits(variables, images)`, or `logits(variables, images, keys)` of a randomised model.
      variables: its first argument.
      images, labels: N of each, on the host.
      size: images at a time.
      sharding: how a batch is laid out.
      key: given for a randomised model; image i draws from `fold_in(fold_in(key, 0), numbers[i])`.
      numbers: int32[N], see `key`.
    """
    answers = []
    for begin in range(0, len(images), size):
        chosen = np.arange(begin, begin + size)
        chosen[chosen >= len(images)] = begin
        batch: list[Any] = [images[chosen], labels[chosen]]
        if key is not None and numbers is not None:
            batch.append(row_keys(key, np.zeros(size, np.int32), numbers[chosen]))
        if sharding is not None:
            batch = jax.device_put(batch, sharding)
        answers.append(jax.device_get(_look(logits, variables, *batch)))
    return Look(*(np.concatenate(column)[: len(images)] for column in zip(*answers, strict=True)))


def unlikeness(first: np.ndarray, *others: np.ndarray) -> float:
    """Return the largest difference of logits float[N, K] of one and the same images, each row brought to length 1."""

    def unit(logits: np.ndarray) -> np.ndarray:
        logits = np.nan_to_num(np.asarray(logits, np.float64))
        return logits / np.maximum(np.linalg.norm(logits, axis=-1, keepdims=True), 1e-300)

    return max(float(np.max(np.abs(unit(other) - unit(first)), initial=0)) for other in others)


def retraced(logits: Logits, variables: Any, images: np.ndarray) -> float:
    """Return how far the answers of two traces of the same function differ; see `unlikeness`.

    Noise that is drawn in Python (`np.random`, a key kept in an object) becomes a constant of the compiled program: its
    answers agree with each other, and the attack defeats one draw of the noise. Another trace draws again.
    """
    traces = [jax.make_jaxpr(lambda v, x: logits(v, x))(variables, images) for _ in range(2)]
    texts = [re.sub(r"0x[0-9a-f]+", "", str(trace.jaxpr)) for trace in traces]
    pairs = zip(traces[0].consts, traces[1].consts, strict=False)
    if texts[0] == texts[1] and all(a is b or _equal(a, b) for a, b in pairs):
        return 0.0
    return unlikeness(*(np.asarray(jax.jit(lambda v, x: logits(v, x))(variables, images)) for _ in range(2)))


def answer_flags(found: Look, *, targets: int) -> list[Flag]:
    """Return the doubts that the clean images raise; `targets` classes are tried of each."""
    flags = []
    finite = np.isfinite(found.logits).all(-1)
    classes = found.logits.shape[-1]
    if broken := int((~finite).sum()):
        flags.append(
            Flag("not_finite", f"{broken} images have logits that are not finite; they count as misclassified")
        )
    if finite.any() and looks_like_probabilities(found.logits[finite]).all():
        flags.append(
            Flag(
                "probabilities",
                "the outputs look like probabilities: pass logits, or the gradient of the cross-entropy vanishes where"
                " the model is sure",
            )
        )
    if zero := int((found.zero_gradient & found.correct).sum()):
        flags.append(
            Flag(
                "zero_gradient",
                f"the gradient of the loss is exactly zero at the start of {zero} of {int(found.correct.sum())} correct"
                " images: attacks that follow it are blind there",
            )
        )
    if classes < 4:
        what = "no DLR at all, which needs 3" if classes == 2 else "no targeted DLR, which needs 4"
        flags.append(Flag("few_classes", f"{classes} classes: there is {what}; {targets} target(s) instead of 9"))
    elif targets < 9:
        flags.append(Flag("few_classes", f"{classes} classes: {targets} targets instead of 9"))
    return flags


def looks_like_probabilities(logits: Any) -> Any:
    """Return which rows of float[N, K], of NumPy or JAX, lie in [0, 1] and sum to 1: bool[N]."""
    return (logits.min(-1) >= 0) & (logits.max(-1) <= 1) & (abs(logits.sum(-1) - 1) < 1e-5)


def perturbation_checks(images: np.ndarray, adv_images: np.ndarray, threat: Threat) -> dict[str, Any]:
    """Return what perturbed images, float[M, H, W, C], really are: the largest perturbation, range of values, NaN."""
    if not len(images):
        return {"largest_over_eps": None, "inside_ball": True, "lowest_pixel": None, "highest_pixel": None, "nan": 0}
    delta = (adv_images.astype(np.float64) - images).reshape(len(images), -1)
    sizes = np.abs(delta).max(1) if threat.norm == "linf" else np.linalg.norm(delta, axis=1)
    eps = float(threat.eps)
    return {
        "largest_over_eps": float(np.nanmax(sizes)) / eps if eps else None,
        # A pixel of float32 is known to 6e-8, and eps itself is rounded.
        "inside_ball": bool((sizes <= eps * (1 + 1e-6) + 1e-7).all()),
        "lowest_pixel": float(np.nanmin(adv_images)),
        "highest_pixel": float(np.nanmax(adv_images)),
        "nan": int(np.isnan(delta).any(1).sum()),
    }


def outcome_flags(checks: dict[str, Any], *, square: int, unconfirmed: int, total: int) -> list[Flag]:
    """Return the doubts that the results raise.

    Args:
      checks: of `perturbation_checks`.
      square: images that only Square broke.
      unconfirmed: adversarial images that are classified correctly when the model is asked once more.
      total: images.
    """
    flags = []
    outside = checks["lowest_pixel"] is not None and (checks["lowest_pixel"] < 0 or checks["highest_pixel"] > 1)
    if not checks["inside_ball"] or checks["nan"] or outside:
        flags.append(Flag("left_ball", "perturbed images left the ball or [0, 1], or hold NaN: numbers are not valid"))
    if square > SQUARE_SHARE * total:
        flags.append(
            Flag(
                "black_box",
                f"Square, which sees no gradients, breaks {square} of {total} images that the other attacks did not:"
                " gradients may be masked",
            )
        )
    if unconfirmed:
        flags.append(
            Flag(
                "unconfirmed",
                f"{unconfirmed} adversarial images are classified correctly when looked at again: answers depend on"
                " the batch, or on noise",
            )
        )
    return flags


def _equal(a: Any, b: Any) -> bool:
    if not hasattr(a, "dtype") or not hasattr(b, "dtype"):
        return bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()
