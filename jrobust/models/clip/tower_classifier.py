"""What classifiers on CLIP's image tower have in common, whatever turns its features into logits."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax

from jrobust.errors import InputError
from jrobust.models.clip.clip import CLIP
from jrobust.models.network import Prediction


@dataclasses.dataclass(frozen=True)
class TowerClassifier(abc.ABC):
    """Images float[B, H, W, 3] in [0, 1] of any size to logits `head(f(x))`, f the image tower; holds no arrays.

    It has the interface of `jrobust.models.classifier.Classifier`, so methods take it as they take any network.

    Attributes:
      clip: the towers.
      num_classes: K of the training set.
      input_shape: of the training images.
      axis_name: of the devices among which a batch is divided.
    """

    clip: CLIP
    num_classes: int
    input_shape: tuple[int, int, int]
    axis_name: str | None = None

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the normalisation."""
        return self.clip.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Of the normalisation."""
        return self.clip.std

    @property
    def resize_to(self) -> int:
        """Side of the square that the tower sees."""
        return self.clip.sizes.image_size

    @property
    def has_map(self) -> bool:
        """Whether there is a last feature map for Grad-CAM: a transformer has none."""
        return False

    def with_axis(self, axis_name: str | None) -> Self:
        """Return this model for another axis of devices."""
        return dataclasses.replace(self, axis_name=axis_name)

    @abc.abstractmethod
    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return fresh `(params, state)`."""

    @abc.abstractmethod
    def pretrained(self, fresh: Any, clip_params: Mapping[str, Any], text: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)` with the weights of a whole CLIP.

        Args:
          fresh: parameters as `init` returns them, for what the file does not have.
          clip_params: as `CLIP.init` returns them.
          text: the unit features W float32[K, E] of the classes' texts, see `zero_shot.class_features`.
        """

    @abc.abstractmethod
    def features(self, params: Any, state: Any, images: jax.Array, **options: Any) -> jax.Array:
        """Return f(x) float32[B, E], not of unit length; `options` are `keep` and `factors` of `CLIP`."""

    @abc.abstractmethod
    def head(self, params: Any, state: Any, features: jax.Array) -> jax.Array:
        """Return the logits float32[B, K] of features float32[B, E]."""

    def apply(
        self,
        params: Any,
        state: Any,
        images: jax.Array,
        *,
        train: bool = False,
        beta: float | None = None,
        keys: jax.Array | None = None,
        mask_mode: str | None = None,
        intermediates: bool = False,
        perturbation: Any = None,
    ) -> Prediction:
        """Return the logits of `images`, and as the intermediate "features" f(x) float32[B, E], not of unit length.

        Nothing in a tower depends on `train`, `keys` or `mask_mode`: no dropout, and batch norm is frozen.

        Raises:
          InputError: images of another kind; `beta` or `perturbation`, which towers have no place for.
        """
        del train, keys, mask_mode
        if beta is not None or perturbation is not None:
            raise InputError("CLIP's towers have neither ReLU to soften nor a last feature map: choose another model")
        features = self.features(params, state, images)
        return Prediction(self.head(params, state, features), state, {"features": features} if intermediates else {})

    def tower(self, params: Any, state: Any, images: jax.Array, **options: Any) -> jax.Array:
        """Return the features of the image tower with parameters `params`."""
        variables = {"image": params}
        if "batch_stats" in state:
            variables["batch_stats"] = state["batch_stats"].value
        return self.clip.image_features(variables, images, **options)
