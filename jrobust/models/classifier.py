"""A network together with what it needs to take images in [0, 1]: the model as the rest of the library sees it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.errors import InputError, unknown
from jrobust.models.network import Prediction

NORM_OVER = ("batch", "device")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A flax.linen network for images float32[B, H, W, C] in [0, 1]; hashable, holds no arrays.

    The network sees `z = (resize(x) - mean) / std`, channel by channel: every radius is in pixel units of [0, 1].
    `module(z, train=, beta=, keys=)` returns logits and a dict of intermediates; it has the fields `dtype` and
    `axis_name`. One that can hold FSR modules also has the field `fsr` and takes `mask_mode`. One with feature maps has
    the field `blocks`, and its last map is the intermediate `feature_map = self.perturb("feature_map", x)`.

    Raises:
      InputError: mean or std do not fit the channels, or a std is not positive.
    """

    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    input_shape: tuple[int, int, int]  # H, W, C of the images given to `apply`
    resize_to: int | None = None  # side of the square the network sees
    freeze_norm: bool = False  # batch norms use and keep their running statistics in train mode too
    norm_over: Literal["batch", "device"] = "batch"  # whose examples batch norms see in train mode
    axis_name: str | None = None  # of the devices among which a batch is divided; see `with_axis`

    def __post_init__(self) -> None:
        for field in ("mean", "std", "input_shape"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise InputError(
                f"input_shape is {self.input_shape}: expected (height, width, channels), such as (32, 32, 3)"
            )
        channels = self.input_shape[2]
        for field in ("mean", "std"):
            if len(getattr(self, field)) != channels:
                raise InputError(
                    f"model.{field} is {getattr(self, field)}: expected one number for each of the {channels} channels"
                )
        if min(self.std) <= 0:
            raise InputError(f"model.std is {self.std}: every number must be positive")
        if self.norm_over not in NORM_OVER:
            raise unknown("train.norm_over", self.norm_over, NORM_OVER)

    @property
    def sigma(self) -> jax.Array:
        """`std` as float[C], of the default float type: dlogits/dx = (dlogits/dz) / sigma."""
        return jnp.asarray(self.std)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Return `(x - mean) / std` in float32 (float64 for float64 images); shape as given."""
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        return (images.astype(dtype) - jnp.asarray(self.mean, dtype)) / jnp.asarray(self.std, dtype)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return fresh `(params, batch_stats)`; batch_stats is {} for a network without batch norm."""
        return _init(self.with_axis(None), key)

    def apply(
        self,
        params: Any,
        batch_stats: Any,
        images: jax.Array,
        *,
        train: bool = False,
        beta: float | None = None,
        keys: jax.Array | None = None,
        mask_mode: str | None = None,
        intermediates: bool = False,
        perturbation: jax.Array | float | None = None,
    ) -> Prediction:
        """Return the logits of `images`.

        Args:
          params, batch_stats: as `init` returns them.
          images: float[B, H, W, C] in [0, 1].
          train: batch statistics in place of running ones (which are updated), and dropout. Without effect where
            the classifier has `freeze_norm`.
          beta: None for ReLU; a number replaces every ReLU by `softplus(beta t) / beta`.
          keys: one typed PRNG key per example, shape [B]; needed in train mode by a network with dropout, and
            wherever a mask is sampled.
          mask_mode: of FSR modules: "mean" is deterministic, "sample" draws; required where the network has one,
            without effect elsewhere.
          intermediates: also return the named feature maps of this forward pass.
          perturbation: is added to the last feature map A (intermediate "feature_map"), of whose shape it is, or a
            number: the gradient with respect to it is that with respect to A. None changes nothing and costs nothing.

        Raises:
          InputError: the images are not of this model's shape, or not floating point; a network without a feature map
            is given a perturbation.
          ValueError: the network has FSR modules and `mask_mode` is None.
        """
        self._check(images)
        variables = {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
        if perturbation is not None:
            if not self.has_map:
                raise InputError(f"{type(self.module).__name__} has no feature map that could be perturbed")
            variables["perturbations"] = {"feature_map": perturbation}
        z = self.normalize(self._resize(images))
        train = train and not self.freeze_norm
        mode: dict[str, Any] = {} if mask_mode is None else {"mask_mode": mask_mode}
        mutable = ["batch_stats"] if train else []
        result, updates = self.module.apply(variables, z, train=train, beta=beta, keys=keys, **mode, mutable=mutable)
        logits, seen = result
        return Prediction(logits, updates.get("batch_stats", batch_stats), seen if intermediates else {})

    @property
    def has_map(self) -> bool:
        """Whether the network has feature maps."""
        return bool(getattr(self.module, "blocks", ()))

    def logits_and_map(
        self, variables: tuple[Any, Any], images: jax.Array, perturbation: jax.Array | float
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits and the last feature map float[B, h, w, C], to which `perturbation` is added; see `apply`.

        In inference mode, masks without noise. `variables` is the pair (params, batch_stats).
        """
        options: dict[str, Any] = {"mask_mode": "mean", "intermediates": True, "perturbation": perturbation}
        prediction = self.apply(*variables, images, **options)
        return prediction.logits, prediction.intermediates["feature_map"]

    def with_axis(self, axis_name: str | None) -> Classifier:
        """Return this model for a batch that is divided among the devices of an axis; same variables.

        In train mode batch norms see the whole batch, or with `norm_over="device"` the examples of their own device,
        as in PyTorch's DataParallel.
        """
        norms = axis_name if self.norm_over == "batch" else None
        return dataclasses.replace(self, axis_name=axis_name, module=self.module.clone(axis_name=norms))

    def _resize(self, images: jax.Array) -> jax.Array:
        if self.resize_to is None:
            return images
        shape = (images.shape[0], self.resize_to, self.resize_to, images.shape[3])
        # Triangle filter, widened when shrinking: PyTorch's bilinear with antialias=True, half-pixel centres.
        return jax.image.resize(images, shape, "linear", antialias=True)

    def _check(self, images: jax.Array) -> None:
        if images.ndim != 4 or images.shape[1:] != self.input_shape:
            height, width, channels = self.input_shape
            found = "x".join(map(str, images.shape))
            raise InputError(
                f"images have shape {found}: this model expects Bx{height}x{width}x{channels} "
                "(batch, height, width, channels); resize them or set data.image_size"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images are {images.dtype}: the model expects floating point in [0, 1]; divide by 255")


@functools.partial(jax.jit, static_argnums=0)
def _init(classifier: Classifier, key: jax.Array) -> tuple[Any, Any]:
    images = jnp.zeros((1, *classifier.input_shape), jnp.float32)
    mode: dict[str, Any] = {"mask_mode": "mean"} if getattr(classifier.module, "fsr", None) else {}
    variables = classifier.module.init(key, classifier.normalize(classifier._resize(images)), **mode)
    # Flax starts running statistics in float32 even where a float64 body will turn them into float64.
    dtype = jnp.promote_types(jnp.float32, classifier.module.dtype)
    return variables["params"], jax.tree.map(lambda leaf: leaf.astype(dtype), variables.get("batch_stats", {}))
