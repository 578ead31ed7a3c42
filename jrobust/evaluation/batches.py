"""Images of a source in batches of one shape, so that every compiled program is compiled once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jrobust.errors import InputError


def batches(
    source: Any,
    batch_size: int,
    indices: Sequence[int] | np.ndarray | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield batches of `source` at `indices` (all by default), reading the next one while the last is worked on.

    Args:
      source: has `__len__` and `__getitem__(i) -> {"image": uint8[H, W, C] or float in [0, 1], "label": int, ...}`.
      batch_size: images a batch. The last one is filled up with copies of its first image, with `valid` False.
      indices: positions in the source.
      mesh: if given, images are laid out over its first axis, whose size divides `batch_size`.

    Yields:
      {"image": float32[B, H, W, C] in [0, 1], "label": int32[B], "index": int32[B], "valid": bool[B], and "box"
      float32[B, 4], "mask", "bias" where the source has them}.
    """
    order = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers, ThreadPoolExecutor(1) as ahead:
        pending = [ahead.submit(_read, source, chunk, batch_size, readers) for chunk in chunks[:1]]
        for number in range(len(chunks)):
            batch = pending.pop().result()
            if number + 1 < len(chunks):
                pending.append(ahead.submit(_read, source, chunks[number + 1], batch_size, readers))
            yield batch if mesh is None else _spread(batch, mesh)


def limit(source: Any, examples: int) -> np.ndarray:
    """Return the first `examples` positions of `source`; 0 for all.

    Raises:
      InputError: `examples` is negative or the source is empty.
    """
    if examples < 0:
        raise InputError(f"examples={examples} is negative: expected a number of images, or 0 for the whole split")
    if len(source) == 0:
        raise InputError(f"data set {source.name!r} has no images in its split {source.split!r}: nothing to evaluate")
    return np.arange(min(examples, len(source)) if examples else len(source))


def _read(source: Any, chunk: np.ndarray, batch_size: int, readers: ThreadPoolExecutor) -> dict[str, np.ndarray]:
    examples = list(readers.map(lambda i: source[int(i)], chunk))
    missing = batch_size - len(examples)
    batch = {
        name: np.stack([np.asarray(example[name]) for example in [*examples, *[examples[0]] * missing]])
        for name in examples[0]
        if name != "index"
    }
    batch["image"] = _unit(batch["image"])
    batch["label"] = batch["label"].astype(np.int32)
    if "box" in batch:
        batch["box"] = batch["box"].astype(np.float32)
    batch["index"] = np.concatenate([chunk, np.repeat(chunk[:1], missing)]).astype(np.int32)
    batch["valid"] = np.arange(batch_size) < len(examples)
    return batch


def _unit(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"images of dtype {images.dtype} span {images.min():.4g} to {images.max():.4g}: expected uint8, or floats"
            " in [0, 1]; normalisation belongs inside the model"
        )
    return images.astype(np.float32)


def _spread(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names[0]))
    return {name: jax.device_put(value, sharding) for name, value in batch.items()}
