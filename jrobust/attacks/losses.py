"""Per-example losses that attacks maximise, and the objective they make of a classifier.

Logits z are float[B, K], labels y and targets t are int[B]; losses are float[B] in float32 or wider. The sorted logits
of an example are z_(1) >= z_(2) >= ...
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jrobust.errors import InputError

Loss = Callable[[jax.Array, jax.Array], jax.Array]
TargetedLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return logsumexp(z) - z_y: float[B] in float32 or wider, for logits float[B, K] and labels int[B]."""
    return optax.softmax_cross_entropy_with_integer_labels(_wide(logits), labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return max_{k != y} z_k - z_y: float[B], positive where the example is misclassified."""
    logits = _wide(logits)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    best_wrong = jnp.max(jnp.where(true, -jnp.inf, logits), axis=-1)
    return best_wrong - _pick(logits, labels)


def cw_loss(logits: jax.Array, labels: jax.Array, confidence: float = 50.0) -> jax.Array:
    """Return -max(z_y - max_{k != y} z_k + confidence, 0), the loss of Carlini and Wagner 2017 (f_6) without its norm.

    Never positive; flat, with gradient 0, once a wrong class leads by `confidence`. That is far off for most networks,
    and not for those whose logits are cosines times 100. 50 is the value of Madry et al.'s challenge and of FSR.
    """
    return jnp.minimum(margin(logits, labels) - confidence, 0.0)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the difference of logits ratio (Croce and Hein 2020, Eq. 6): margin / (z_(1) - z_(3) + 1e-12).

    Does not change when logits are shifted or scaled, and lies in [-1, 0] where the example is correctly classified.
    Elsewhere it is not bounded: where z_(1) is close to z_(3) its values in two precisions may be far apart.

    Raises:
      InputError: fewer than 3 classes.
    """
    _check_classes(logits, 3, "DLR", "use loss='ce'")
    largest = jax.lax.top_k(_wide(logits), 3)[0]
    return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Return (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12), the targeted DLR (Croce and Hein 2020, Eq. 7).

    Raises:
      InputError: fewer than 4 classes.
    """
    _check_classes(logits, 4, "targeted DLR", "use the targeted cross-entropy, or loss='ce'")
    logits = _wide(logits)
    largest = jax.lax.top_k(logits, 4)[0]
    spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12
    return (_pick(logits, targets) - _pick(logits, labels)) / spread


def targeted_cross_entropy(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Return -cross_entropy(z, t) = z_t - logsumexp(z); the labels play no part."""
    del labels
    return -cross_entropy(logits, targets)


def kl(reference_logits: jax.Array, logits: jax.Array) -> jax.Array:
    """Return KL(p || q) = sum_k p_k (log p_k - log q_k) of p = softmax(reference_logits) and q = softmax(logits).

    What TRADES maximises over images with p the clean prediction, held fixed (Zhang et al. 2019, Alg. 1). Both
    arguments are differentiable. Where both are the same the gradient is 0: an attack must start elsewhere.
    """
    return optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(_wide(logits)), jax.nn.log_softmax(_wide(reference_logits))
    )


def ranked_targets(logits: jax.Array, count: int) -> jax.Array:
    """Return the classes at ranks 2 .. count + 1 of the logits, int32[B, count]: the targets that AutoAttack tries.

    For a correctly classified image these are the likeliest wrong classes, the first one leading; of equal logits the
    lower class comes first.

    Raises:
      InputError: there are not so many other classes.
    """
    others = logits.shape[-1] - 1
    if not 1 <= count <= others:
        raise InputError(f"{count} target classes, where there are {others} wrong ones: use 1 to {others} targets")
    return jax.lax.top_k(logits, count + 1)[1][:, 1:].astype(jnp.int32)


def untargeted(
    logits_fn: Callable[[jax.Array], jax.Array], labels: jax.Array, loss: Loss = cross_entropy
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the objective that drives images away from their labels.

    Args:
      logits_fn: images float[B, H, W, C] in [0, 1] -> logits float[B, K]; the normalisation is inside it.
      labels: int[B].
      loss: what is maximised, per example.

    Returns:
      images -> (loss float[B], success bool[B]); success is misclassification, ties going to the lowest class.
    """

    def objective(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(images)
        return loss(logits, labels), jnp.argmax(logits, axis=-1) != labels

    return objective


def targeted(
    logits_fn: Callable[[jax.Array], jax.Array],
    labels: jax.Array,
    targets: jax.Array,
    loss: TargetedLoss = targeted_cross_entropy,
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the objective that drives images from their labels towards targets.

    As in AutoAttack success is misclassification as anything, the target or not: targets are ways out of the label, and
    a robust accuracy counts every one. Compare the classes of `adv_images` with `targets` to count hits.

    Args:
      logits_fn: images float[B, H, W, C] in [0, 1] -> logits float[B, K]; the normalisation is inside it.
      labels: int[B].
      targets: int[B].
      loss: what is maximised: (logits, labels, targets) -> float[B], such as `targeted_dlr`.

    Returns:
      images -> (loss float[B], success bool[B]).
    """
    return untargeted(logits_fn, labels, lambda logits, labels: loss(logits, labels, targets))


def _check_classes(logits: jax.Array, least: int, name: str, advice: str) -> None:
    if logits.shape[-1] < least:
        raise InputError(f"logits of {logits.shape[-1]} classes: {name} needs at least {least} classes: {advice}")


def _pick(logits: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _wide(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
