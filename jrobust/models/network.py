"""A classifier as methods and commands see it, whatever is inside."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax


class Prediction(NamedTuple):
    """What one forward pass gives."""

    logits: jax.Array  # float32[B, K]
    batch_stats: Any  # updated in train mode, otherwise as given
    intermediates: dict[str, Any]  # feature maps, and the `Auxiliary` of each FSR module; empty unless asked for


class Network(Protocol):
    """A hashable record without arrays; `Classifier` and `clip.zero_shot.ZeroShot` say what each member is."""

    @property
    def num_classes(self) -> int:
        """K, the width of the logits in training."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the training images."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the normalisation, a number a channel, in units of [0, 1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Of the normalisation, a number a channel, in units of [0, 1]."""

    @property
    def resize_to(self) -> int | None:
        """Side of the square that the network sees; None for images as they are."""

    @property
    def axis_name(self) -> str | None:
        """The axis of the devices among which a batch is divided; None for whole batches."""

    @property
    def has_map(self) -> bool:
        """Whether there is a last feature map."""

    def with_axis(self, axis_name: str | None) -> Network:
        """Return this network for another axis of devices."""

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return fresh parameters, and the state that is not trained."""

    def apply(
        self,
        params: Any,
        state: Any,
        images: jax.Array,
        /,
        *,
        train: bool = False,
        beta: float | None = None,
        keys: jax.Array | None = None,
        mask_mode: str | None = None,
        intermediates: bool = False,
        perturbation: jax.Array | float | None = None,
    ) -> Prediction:
        """Return the logits of images float[B, H, W, C] in [0, 1]."""
