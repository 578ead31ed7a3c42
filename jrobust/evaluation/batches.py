"""Images of a source in batches of one shape, so that every program is compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jrobust.data.pipeline import evaluation_batches
from jrobust.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cropped:
    """A source whose images are evaluated through a centre crop; boxes and masks follow.

    What has to be evaluated so: a data set whose training took random crops of `data.augment.crop_size`.
    """

    source: Any
    crop_size: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[i]  # as it is read: `batches` crops

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@dataclasses.dataclass(frozen=True)
class _Subset:
    source: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.image_shape

    def examples(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return self.source.examples(self.indices[index])


def batches(
    source: Any, batch_size: int, indices: Sequence[int] | np.ndarray, mesh: jax.sharding.Mesh | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the images of `source` at `indices` in batches, the next ones being read meanwhile.

    Args:
      source: a `jrobust.data.source.Source`, or one `Cropped`.
      batch_size: images a batch; the last one is filled up, with `valid` False.
      indices: positions in the source.
      mesh: if given, batches are laid out over its first axis, whose size divides `batch_size`.

    Yields:
      {"image": float32[B, H, W, C] in [0, 1], "label": int32[B], "index": int32[B], "valid": bool[B], and "box"
      float32[B, 4], "mask", "bias" where the source has them}.
    """
    order, crop_size = np.asarray(indices, np.int64), getattr(source, "crop_size", 0)
    subset: Any = _Subset(source, order)
    for batch in evaluation_batches(subset, batch_size, crop_size=crop_size):
        batch["index"] = order[batch["index"]].astype(np.int32)
        yield batch if mesh is None else _spread(batch, mesh)


def choose(source: Any, examples: int) -> np.ndarray:
    """Return `examples` positions of `source`, spread evenly (folders are sorted by class) as in training; 0 for all.

    >>> choose(range(10), 4).tolist()
    [0, 2, 5, 7]

    Raises:
      InputError: `examples` is negative or the source is empty.
    """
    if examples < 0:
        raise InputError(f"examples={examples} is negative: expected a number of images, or 0 for the whole split")
    total = len(source)
    if total == 0:
        raise InputError(f"data set {source.name!r} has no images in its split {source.split!r}: nothing to evaluate")
    count = min(examples, total) if examples else total
    return np.arange(count, dtype=np.int64) * total // count


def image_shape(source: Any) -> tuple[int, int, int]:
    """Return height, width and channels of the images as they are evaluated."""
    height, width, channels = source.image_shape
    crop = getattr(source, "crop_size", 0)
    return (crop, crop, channels) if crop else (height, width, channels)


def _spread(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))
    return {name: jax.device_put(value, sharding) for name, value in batch.items()}
