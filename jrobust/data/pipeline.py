"""Batches: an endless stream for training whose state is one number, and padded batches for evaluation."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrobust import keys
from jrobust.data.augment import Augmentation, augment, output_shape
from jrobust.data.images import Fit
from jrobust.data.refitted import refitted
from jrobust.data.source import INTEGERS, THREADS, Arrays, Source, threads
from jrobust.errors import InputError

Batch = dict[str, Any]

_AHEAD = 4  # evaluation batches that are decoded ahead of the one in use


class TrainBatches:
    """Endless iterator of training batches over whole epochs.

    A Grain pipeline: shuffled, batched, split among processes, read ahead in threads. Each epoch is a new permutation
    of the source, drawn from `seed` and the number of the epoch; the last `len(source) % batch_size` images of it are
    left out, so batches do not cross epochs. Batch number t is a function of t, `seed` and `batch_size` alone: it does
    not depend on `resident`, and the parts of the processes, laid end to end, are the batch of a single process.

    A batch is a dict of host arrays: `index` int32[b], b = batch_size / process_count, the positions in the source;
    with `resident=False` also the decoded examples (`image` uint8[b, H, W, C], `label` int32[b] ..). With
    `resident=True` the examples are in `resident`, to be put on the device once.

    Attributes:
      steps_per_epoch: batches in an epoch.
      resident: `source.resident()`, the whole source as a dict of arrays; empty with `resident=False`.

    Raises:
      InputError: the batch is larger than the source, or cannot be divided among the processes.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        *,
        resident: bool,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if not 1 <= batch_size <= len(source):
            raise InputError(
                f"batch size {batch_size} does not fit {source.name} {source.split} with its {len(source)} images: "
                f"expected 1 to {len(source)}; set train.batch_size"
            )
        if batch_size % process_count:
            raise InputError(
                f"batch size {batch_size} cannot be divided among {process_count} processes: set train.batch_size to a "
                f"multiple of {process_count}"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process {process_index} of {process_count}")
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.steps_per_epoch = len(source) // batch_size
        self.resident: Arrays = source.resident() if resident else {}
        self._is_resident = resident
        local = batch_size // process_count
        self._part = slice(process_index * local, (process_index + 1) * local)
        self._step = 0
        self._reader: Any = None  # Grain's iterator and its threads, from the first batch on

    def _read(self) -> Any:
        """Return Grain's iterator over the stream, at the batch that is due."""
        import grain

        stream = grain.MapDataset.range(len(self.source)).seed(self.seed).shuffle()
        stream = stream.batch(self.batch_size, drop_remainder=True).repeat()  # batched first: epochs stay whole
        stream = stream.map(lambda index: {"index": np.asarray(index[self._part], np.int32)})
        if not self._is_resident:
            stream = stream.map(lambda batch: {**self.source.examples(batch["index"]), **batch})
        ahead = 1 if self._is_resident else THREADS
        reader = iter(stream.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=max(ahead, 4))))
        reader.set_state({"next_index": self._step})
        return reader

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> Arrays:
        if self._reader is None:
            self._reader = self._read()
        batch = next(self._reader)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Return where the stream stands, for JSON: the number of batches given out, and what they depend on."""
        return {
            "step": self._step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "examples": len(self.source),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state: the next batch is the one that followed when the state was taken.

        Raises:
          InputError: the state is of another seed, batch size or number of images, or is no state.
        """
        own = self.get_state()
        for key, what in (("seed", "seed"), ("batch_size", "batch size"), ("examples", "number of training images")):
            if state.get(key) != own[key]:
                raise InputError(
                    f"the saved position in the data has {what} {state.get(key)!r}, but this run has {own[key]!r}: "
                    "continue with the settings of the run that saved it, or start in a new workdir"
                )
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise InputError(f"the saved position in the data is {step!r}: expected a number of batches")
        self.close()
        self._step = step

    def close(self) -> None:
        """End the reading threads; the stream can still be continued."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def make_prepare(
    augmentation: Augmentation | Mapping[str, Any] | None,
) -> Callable[[Batch, Mapping[str, jax.Array] | None, jax.Array], Batch]:
    """Return `prepare(batch, resident, key)`, the part of the input that runs inside the compiled training step.

    It gathers the examples from the device-resident arrays (if `resident` holds any; else they are in `batch`; through
    `row` where that is there), augments them, and converts to float32 in [0, 1]. The draw of an image depends on `key`
    and its `index` alone. The result has `image`, `label`, `index`; where the set has captions, `tokens`
    int32[B, D, T]; where it has a bias, `bias` int32[B] and `conflicting` bool[B], bias != label. `box` and `mask` do
    not follow the transforms and are left out.

    Raises:
      InputError: the section has an unknown field or a bad value.
    """
    settings = Augmentation.of(augmentation)

    def prepare(batch: Batch, resident: Mapping[str, jax.Array] | None, key: jax.Array) -> Batch:
        index = batch["index"]
        fields = resident if resident else batch
        kept = {name: fields[name] for name in ("image", *INTEGERS) if name in fields}
        if resident:
            row = jnp.take(resident["row"], index, mode="clip") if "row" in resident else index
            kept = {name: jnp.take(value, row, axis=0, mode="clip") for name, value in kept.items()}
        height, width, channels = kept["image"].shape[1:]
        output_shape((height, width, channels), settings)  # raises if the crop is larger than the image
        images = augment(kept["image"], keys.per_example(key, index), settings)
        return with_conflicting({**kept, "image": images.astype(jnp.float32) / 255, "index": index})

    return prepare


def with_conflicting(batch: Batch) -> Batch:
    """Return the batch with `conflicting` bool[B], where its `bias` is not its `label`, if it has a `bias`."""
    return {**batch, "conflicting": batch["bias"] != batch["label"]} if "bias" in batch else batch


def for_evaluation(source: Source, augmentation: Augmentation | Mapping[str, Any] | None) -> Source:
    """Return the source as the network that is trained with this augmentation is to see it, up to a centre crop.

    That is `source` itself; or, where training resizes images on the device, the same on the host: squares of side
    `crop_size`, with boxes and masks.
    """
    settings = Augmentation.of(augmentation)
    if not settings.resize:
        return source
    return refitted(source, int(settings.crop_size), Fit("crop", int(settings.resize)))


def evaluation_batches(
    source: Source, batch_size: int, limit: int | None = None, *, crop_size: int = 0
) -> Iterator[Arrays]:
    """Iterate over the source in order, as dicts of host arrays of one shape.

    A batch has `image` float32[B, H, W, C] in [0, 1], `label` and `index` int32[B], `valid` bool[B] (False where the
    last batch was filled up, with its last example), and `box`, `mask`, `bias` with `conflicting` bool[B] (bias !=
    label) where the set has them.

    Args:
      source: what to read; images are decoded in threads, some batches ahead.
      batch_size: B.
      limit: take only so many examples, spread evenly over the source (image folders are sorted by class): example j is
        at floor(j N / limit). None or 0 takes all.
      crop_size: side of a centre crop, to which boxes (not clipped) and masks are shifted; 0 for none.

    Raises:
      InputError: an image cannot be decoded, or is smaller than the crop.
    """
    if batch_size < 1:
        raise InputError(f"evaluation batch size {batch_size}: expected at least 1")
    if limit is not None and limit < 0:
        raise InputError(f"number of examples {limit}: expected at least 1, or 0 for all")
    output_shape(source.image_shape, Augmentation(crop_size=crop_size))
    total = len(source)
    count = min(limit, total) if limit else total
    index = np.arange(count, dtype=np.int64) * total // count
    parts = [index[i : i + batch_size] for i in range(0, count, batch_size)]
    return _evaluation_stream(source, parts, batch_size, crop_size)


def _evaluation_stream(source: Source, parts: list[np.ndarray], batch_size: int, crop_size: int) -> Iterator[Arrays]:
    with threads() as pool:
        pending: collections.deque = collections.deque()
        for i in range(len(parts) + _AHEAD):
            if i < len(parts):
                pending.append(pool.submit(_evaluation_batch, source, parts[i], batch_size, crop_size))
            if i >= _AHEAD and pending:
                yield pending.popleft().result()


def _evaluation_batch(source: Source, index: np.ndarray, batch_size: int, crop_size: int) -> Arrays:
    padded = np.concatenate([index, np.repeat(index[-1:], batch_size - len(index))])
    examples = source.examples(index)
    batch = {key: value[np.minimum(np.arange(batch_size), len(index) - 1)] for key, value in examples.items()}
    if crop_size:
        batch = _centre_crop(batch, crop_size)
    batch["image"] = batch["image"].astype(np.float32) / np.float32(255)
    batch["index"] = padded.astype(np.int32)
    batch["valid"] = np.arange(batch_size) < len(index)
    return with_conflicting(batch)


def _centre_crop(batch: Arrays, size: int) -> Arrays:
    height, width = batch["image"].shape[1:3]
    top, left = round((height - size) / 2), round((width - size) / 2)  # as torchvision's CenterCrop
    window = (slice(None), slice(top, top + size), slice(left, left + size))
    cropped = {key: value[window] if key in ("image", "mask") else value for key, value in batch.items()}
    if "box" in cropped:
        cropped["box"] = cropped["box"] - np.array([left, top, left, top], np.float32)
    return cropped
