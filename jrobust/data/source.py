"""A split of a labelled image data set, read by position, and sources from arrays in memory."""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jrobust.data import images as image_files
from jrobust.data.terminal import progress
from jrobust.errors import InputError

Arrays = dict[str, np.ndarray]

THREADS = min(16, 2 * (os.cpu_count() or 1))  # PIL and array_record release the interpreter lock
_CHUNK = 64
INTEGERS = ("label", "bias", "tokens")  # the fields that are int32


class Source(abc.ABC):
    """A split of a labelled image data set: `len(source)`, `source[i]`, `source.arrays()`.

    `source[i]` is a dict of `image` uint8[H, W, C], C = 1 or 3, and `label`, an int below `len(class_names)`; where
    the set has them also `box` float32[4] (x0, y0, x1, y1 in pixels of the returned image), `bias` int and `mask`
    uint8[H, W]. It depends on `i` alone, and may be called from several threads.

    The bias of an image is the attribute that labels are spuriously correlated with, numbered so that the value that
    goes with class k is k: an image is bias-conflicting where its bias is not its label, else aligned.

    Attributes:
      name: the name by which the set was loaded.
      split: "train", "validation" or "test".
      class_names: one name a class.
      labels: int32[N], known without decoding images.
      place: where it was read from, for messages.
      bias_names: one name a value of the bias; () for a set without a bias.
      biases: int32[N], known without decoding images; None for a set without a bias.
      image_size: side of the square that images are resized to on reading; 0 if they keep their size.
      fit: how they become that square.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    place: str = "memory"
    bias_names: tuple[str, ...] = ()
    biases: np.ndarray | None = None
    image_size: int = 0
    fit: image_files.Fit = image_files.SQUEEZE
    _arrays: Arrays | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abc.abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image.

        Raises:
          InputError: the first image had to be decoded for it and could not be.
        """

    @abc.abstractmethod
    def __getitem__(self, i: int) -> dict[str, Any]: ...

    def examples(self, index: Sequence[int] | np.ndarray) -> Arrays:
        """Return the examples at the positions `index`, each field stacked: `image` uint8[B, H, W, C] and so on."""
        return stack([self[int(i)] for i in index])

    def arrays(self) -> Arrays:
        """Return the whole split, each field stacked; read in threads once, then kept. Callers must not write to it.

        Raises:
          InputError: an image cannot be decoded, or its shape differs from the first one's.
        """
        if self._arrays is None:
            self._arrays = self._read_all()
        return self._arrays

    def resident(self) -> Arrays:
        """Return what training puts on the device: `arrays()`, or those with fewer images and `row` int32[N].

        Where `row` is there, example i is the one at `row[i]` of the other arrays.
        """
        return self.arrays()

    def native(self) -> Source:
        """Return the same split at the size of its files, where images may differ in shape; itself if none is known."""
        return self

    def resized(self, image: np.ndarray) -> np.ndarray:
        """Return an image of `native()`, or one made from it, as this source resizes it: uint8[H, W, C]."""
        return image_files.resize(image, self.image_size, self.fit) if self.image_size else image

    def _read_all(self) -> Arrays:
        chunks = [range(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)]
        arrays: Arrays = {}
        with threads() as pool, progress(f"reading {self.name} {self.split}", len(self)) as advance:
            for chunk, part in zip(chunks, pool.map(self.examples, chunks), strict=True):
                for key, value in part.items():
                    if key not in arrays:
                        arrays[key] = np.empty((len(self), *value.shape[1:]), value.dtype)
                    arrays[key][chunk.start : chunk.stop] = value
                advance(len(chunk))
        return arrays


class ArraySource(Source):
    """A source over arrays that are in memory; made by `from_arrays`, which checks them."""

    def __init__(
        self,
        name: str,
        split: str,
        class_names: Sequence[str],
        arrays: Arrays,
        place: str = "memory",
        bias_names: Sequence[str] = (),
    ):
        self.name, self.split, self.class_names = name, split, tuple(class_names)
        self.labels, self.place = arrays["label"], place
        self.bias_names, self.biases = tuple(bias_names), arrays.get("bias")
        self._arrays = arrays
        self._native: Source = self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.arrays()["image"].shape[1:]
        return height, width, channels

    def __getitem__(self, i: int) -> dict[str, Any]:
        example: dict[str, Any] = {key: value[i] for key, value in self.arrays().items()}
        return example | {key: int(example[key]) for key in ("label", "bias") if key in example}

    def examples(self, index: Sequence[int] | np.ndarray) -> Arrays:
        """Return the examples at the positions `index`, each field stacked."""
        return {key: value[np.asarray(index)] for key, value in self.arrays().items()}

    def native(self) -> Source:
        """Return the same split as the arrays were given."""
        return self._native


def from_arrays(
    images: Any,
    labels: Any,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "arrays",
    split: str = "train",
    boxes: Any = None,
    biases: Any = None,
    bias_names: Sequence[str] | None = None,
    masks: Any = None,
    image_size: int = 0,
    fit: image_files.Fit = image_files.SQUEEZE,
    place: str = "memory",
) -> Source:
    """Return a source over arrays in memory.

    Args:
      images: uint8[N, H, W, C] with C = 1 or 3, or [N, H, W]; or floats in [0, 1] of that shape, which are rounded to
        the 256 levels.
      labels: integers [N] in 0 .. K-1.
      class_names: the K names; without them K is the largest label plus one and the names are the numbers.
      name: what records call the set.
      split: what records call the split.
      boxes: [N, 4] as x0, y0, x1, y1 in pixels.
      biases: integers [N], the attribute that labels are spuriously correlated with; k goes with class k.
      bias_names: a name for each of its values; without them the numbers.
      masks: uint8[N, H, W].
      image_size: side of the square to resize to (boxes and masks follow); 0 keeps the size.
      fit: how they become that square.
      place: where the arrays come from, for messages.

    >>> source = from_arrays(np.zeros((2, 4, 4, 3)), [0, 1], ["cat", "dog"])
    >>> len(source), source.image_shape, source[1]["label"], source[1]["image"].dtype
    (2, (4, 4, 3), 1, dtype('uint8'))

    Raises:
      InputError: a wrong shape, type or range, a label without a class, or fields of different lengths.
    """
    pixels = _pixels(images, place)
    label = check_labels(labels, len(pixels), len(class_names) if class_names is not None else None, place)
    names = class_names if class_names is not None else [str(k) for k in range(int(label.max()) + 1)]
    height, width = pixels.shape[1:3]
    arrays = {"image": pixels, "label": label}
    if boxes is not None:
        box = _field("boxes", boxes, (len(pixels), 4), place).astype(np.float32)
        if not np.isfinite(box).all():
            raise InputError(f"boxes of {place} hold NaN or infinity: expected x0, y0, x1, y1 in pixels")
        arrays["box"] = box
    if biases is not None:
        values = len(bias_names) if bias_names is not None else None
        arrays["bias"] = check_labels(biases, len(pixels), values, place, kind="bias")
        if bias_names is None:
            bias_names = [str(k) for k in range(max(len(names), int(arrays["bias"].max()) + 1))]
    if masks is not None:
        mask = _field("masks", masks, (len(pixels), height, width), place)
        if mask.dtype not in (np.uint8, np.bool_):
            raise InputError(f"masks of {place} have type {mask.dtype}: expected uint8 or bool")
        arrays["mask"] = mask.astype(np.uint8)
    bias_names = [str(n) for n in bias_names or ()] if biases is not None else ()
    source = ArraySource(name, split, [str(n) for n in names], arrays, place, bias_names)
    fit.check(image_size)
    return _resized(source, image_size, fit) if image_size else source


def _resized(source: ArraySource, image_size: int, fit: image_files.Fit) -> ArraySource:
    """Return the source with its images, boxes and masks at another size, and the given one as its `native()`."""
    native = source.arrays()
    height, width = source.image_shape[:2]
    arrays = dict(native)
    if "box" in arrays:
        arrays["box"] = image_files.scale_box(arrays["box"], (width, height), image_size, fit)
    if (height, width) != (image_size, image_size) or fit.resize > image_size:
        resize = functools.partial(image_files.resize, size=image_size, fit=fit)
        with threads() as pool:
            arrays["image"] = np.stack(list(pool.map(resize, native["image"])))
            if "mask" in arrays:
                masks = [image_files.resize_mask(mask, image_size, fit) for mask in native["mask"]]
                arrays["mask"] = np.stack(masks)
    result = ArraySource(source.name, source.split, source.class_names, arrays, source.place, source.bias_names)
    result.image_size, result.fit, result._native = image_size, fit, source
    return result


def check_labels(labels: Any, count: int, num_classes: int | None, place: str, kind: str = "label") -> np.ndarray:
    """Return `labels` as int32[count].

    Raises:
      InputError: they are no integers, not `count` many, negative, or not below `num_classes`.
    """
    array = _field(f"{kind}s", labels, (count,), place)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{kind}s of {place} have type {array.dtype}: expected integers")
    bad = (array < 0) | (array >= (num_classes if num_classes is not None else np.iinfo(np.int32).max))
    if bad.any():
        at = int(bad.argmax())
        allowed = f"0 to {num_classes - 1} ({num_classes} classes)" if num_classes is not None else "at least 0"
        raise InputError(f"{kind} {array[at]} of image {at} in {place} is out of range: expected {allowed}")
    return array.astype(np.int32)


def stack(examples: Sequence[dict[str, Any]]) -> Arrays:
    """Return a list of examples as one dict of stacked arrays; integers become int32."""
    stacked = {key: np.stack([np.asarray(example[key]) for example in examples]) for key in examples[0]}
    return {key: value.astype(np.int32) if key in INTEGERS else value for key, value in stacked.items()}


@contextlib.contextmanager
def threads() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Yield a pool of threads for decoding; what has not begun when the block is left by an error is dropped."""
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(images: Any, place: str) -> np.ndarray:
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise InputError(f"images of {place} have shape {np.shape(images)}: expected [N, H, W, C] with C = 1 or 3")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"images of {place} have type {array.dtype}: expected uint8, or floats in [0, 1]")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise InputError(f"images of {place} lie in [{low:g}, {high:g}]: expected floats in [0, 1], or uint8")
    return np.rint(array * 255).astype(np.uint8)


def _field(name: str, value: Any, shape: tuple[int, ...], place: str) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape:
        raise InputError(f"{name} of {place} have shape {array.shape}: expected {shape} for {shape[0]} images")
    return array
