"""What AutoAttack accepts: everything is looked at before anything is compiled, and refused with what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.attacks.threat import Threat
from jrobust.errors import InputError


class Input(NamedTuple):
    """A classifier and N images, checked.

    Attributes:
      logits: `logits(variables, images)`, or `logits(variables, images, keys)` of a randomised model.
      variables: a pytree of arrays.
      classes: K.
      images: float32 or wider[N, H, W, C] in [0, 1], on the host.
      labels: int32[N].
      numbers: int32[N], what keys are folded with.
    """

    logits: Callable[..., jax.Array]
    variables: Any
    classes: int
    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True)
class _WithoutVariables:
    """A function of images as one of variables and images; two of the same function are equal, as compilation needs."""

    function: Callable[..., jax.Array]

    def __call__(self, variables: Any, *arguments: jax.Array) -> jax.Array:
        del variables
        return self.function(*arguments)


def checked(
    logits_fn: Callable[..., jax.Array],
    variables: Any,
    images: Any,
    labels: Any,
    key: Any,
    index: Any,
    threat: Threat,
    *,
    randomised: bool,
) -> Input:
    """Return the arguments of `jrobust.attacks.autoattack.autoattack`, brought to one form.

    Raises:
      InputError: see there.
    """
    leaves = jax.tree.leaves((variables, images, labels, key, index, threat))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        raise InputError("autoattack was called inside a compiled or transformed function: call it outside of jit")
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise InputError(f"key is {type(key).__name__}: expected a typed PRNG key, jax.random.key(0)")
    pixels = _images(images)
    classes = _labels(labels, len(pixels))
    numbers = np.arange(len(pixels)) if index is None else np.asarray(index)
    if numbers.shape != classes.shape:
        raise InputError(f"index has shape {numbers.shape}: expected ({len(pixels)},), a number for each image")
    try:
        hash(logits_fn)
    except TypeError as error:
        raise InputError("logits_fn is not hashable: pass a plain function, and its arrays as variables") from error
    logits = _WithoutVariables(logits_fn) if variables is None else logits_fn
    variables = () if variables is None else variables
    count = _classes(logits, variables, pixels, key, randomised=randomised)
    if classes.min() < 0 or classes.max() >= count:
        raise InputError(
            f"labels from {classes.min()} to {classes.max()} where the logits have {count} classes: expected labels"
            f" from 0 to {count - 1}"
        )
    return Input(logits, variables, count, pixels, classes, numbers.astype(np.int32))


def _images(images: Any) -> np.ndarray:
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.size == 0:
        what = "no images" if 0 in pixels.shape[:1] else f"images of shape {pixels.shape}"
        raise InputError(f"{what}: expected float[N, H, W, C] with N of at least 1")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise InputError(f"images of type {pixels.dtype}: expected floating-point numbers in [0, 1]; divide by 255")
    pixels = pixels.astype(jax.dtypes.canonicalize_dtype(jnp.promote_types(pixels.dtype, jnp.float32)))
    if lost := int((~np.isfinite(pixels)).any((1, 2, 3)).sum()):
        raise InputError(f"{lost} of {len(pixels)} images hold NaN or infinity: expected numbers in [0, 1]")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        advice = "divide by 255" if low >= 0 and high > 2 else "put the normalisation inside logits_fn"
        raise InputError(f"images have values from {low:.4g} to {high:.4g}: expected [0, 1]; {advice}")
    return pixels


def _labels(labels: Any, count: int) -> np.ndarray:
    classes = np.asarray(labels)
    if classes.shape != (count,) or not np.issubdtype(classes.dtype, np.integer):
        raise InputError(
            f"labels of shape {classes.shape} and type {classes.dtype}: expected whole numbers of shape ({count},)"
        )
    return classes.astype(np.int32)


def _classes(logits: Callable, variables: Any, images: np.ndarray, key: jax.Array, *, randomised: bool) -> int:
    """Return the number of classes."""
    arguments: list[Any] = [variables, images[:1]]
    if randomised:
        arguments.append(jax.random.split(key, 1))
    # In a function of its own: JAX keeps weak references to what it traces, and not everything callable allows them.
    found = jax.eval_shape(lambda *a: logits(*a), *arguments)
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", np.dtype(bool))
    if shape is None or len(shape) != 2 or shape[0] != 1 or not jnp.issubdtype(dtype, jnp.floating):
        what = f"{dtype}{list(shape)}" if shape is not None else type(found).__name__
        raise InputError(f"logits_fn gives {what} for one image: expected float[1, K], a logit for each class")
    return int(shape[1])
