"""The `shapes` world: rendered images of shapes, with captions, that give several tasks over the same images."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jrobust.data import counters
from jrobust.data.shapes_pixels import BACKGROUNDS, COLORS, SHAPES, TEXTURES, drawn, render
from jrobust.data.source import Arrays, Source
from jrobust.errors import InputError, unknown

SIDE = 32
HELD_OUT = 1024  # images of the validation set, and of the test set
# the columns of `Shapes.attributes`, in the order in which captions name them
ATTRIBUTES = {"color": tuple(COLORS), "texture": TEXTURES, "shape": SHAPES, "background": tuple(BACKGROUNDS)}
TASKS = (*ATTRIBUTES, *("_".join(pair) for pair in itertools.combinations(ATTRIBUTES, 2)))
CORRELATED = ("color", "texture", "shape")  # tasks with whose classes backgrounds can go
# A class name of the task in place of {}; all words occur in captions.
TEMPLATES = dict.fromkeys(TASKS, "a photo of a {}") | {
    "color": "a photo of a {} shape",
    "texture": "a photo of a {} shape",
    "background": "a photo of a shape on {}",
}
UNRELATED = 100 * (1 - 1 / len(BACKGROUNDS))  # percentage of conflicting images where the background tells nothing
_OPENINGS = ("a photo of a", "a picture of a", "an image of a", "this is a photo of a", "this is a", "there is a", "a")
_PLACES = ("on", "in front of", "with")
_MENTIONED = 0.75  # probability with which a caption names an attribute
# every word of captions, class names and templates
WORDS = tuple(dict.fromkeys(" ".join([*_OPENINGS, *_PLACES, "shape", *itertools.chain(*ATTRIBUTES.values())]).split()))
VOCABULARY = len(WORDS) + 3  # with padding, the first token, and start and end, the last ones
_SPLITS = ("train", "validation", "test")
# Times 2 in the field of eight elements. In it the attributes of a block of 64 images are s + m t for all s and t, with
# another m each: any two attributes hold every pair of values equally often.
_TIMES_2 = np.array([0, 2, 4, 6, 3, 1, 7, 5])
_BLOCK = 64


class Shapes(Source):
    """A split of the `shapes` world under one task; images are rendered when they are asked for.

    Attributes:
      task: what labels tell.
      attributes: int32[N, 4], the values of `ATTRIBUTES` in that order.
      seed: decides everything.
    """

    task: str
    attributes: np.ndarray
    seed: int

    def __init__(self, split: str, image_size: int, *, task: str, size: int, ratio: float, seed: int):
        if task not in TASKS:
            raise unknown("data.options.task", task, TASKS)
        if size < 1:
            raise InputError(f"data.options.size is {size}: expected the number of training images, at least 1")
        if not 0 <= ratio <= UNRELATED:
            raise InputError(
                f"data.options.ratio is {ratio:g}: expected the percentage of conflicting images, 0 to {UNRELATED:g}, "
                "at which the background tells nothing of the class"
            )
        if ratio != UNRELATED and task not in CORRELATED:
            raise InputError(
                f"data.options.ratio is {ratio:g} with task {task!r}: expected {UNRELATED:g}, because backgrounds can "
                f"go with the classes of the tasks {', '.join(CORRELATED)} only"
            )
        self.name, self.split, self.task, self.seed = "shapes", split, task, seed
        self.image_size, self._side, self.place = image_size, image_size or SIDE, "the shapes world"
        self.class_names = class_names(task)
        self.attributes = _designed(seed, split, size if split == "train" else HELD_OUT)
        self.labels = _labels(task, self.attributes)
        if task in CORRELATED:
            if split != "test":
                self.attributes[:, -1] = _correlated(self.attributes[:, -1], self.labels, ratio)
            self.bias_names, self.biases = tuple(BACKGROUNDS), self.attributes[:, -1].copy()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self._side, self._side, 3

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        rng = np.random.RandomState(counters.bits(self.seed, _stream("pixels", self.split), i))
        image, mask, box = render(drawn(rng, *(int(value) for value in self.attributes[i])), self._side)
        example = {"image": image, "label": int(self.labels[i]), "mask": mask, "box": box}
        return example if self.biases is None else example | {"bias": int(self.biases[i])}

    def examples(self, index: Sequence[int] | np.ndarray) -> Arrays:
        """Return the examples at the positions `index`, each field stacked."""
        if self._arrays is None:
            return super().examples(index)
        return {key: value[np.asarray(index)] for key, value in self._arrays.items()}


def shapes(split: str, image_size: int = 0, *, task: str, size: int, ratio: float, seed: int) -> Shapes:
    """Return images of coloured, textured shapes on textured backgrounds: one world, several tasks.

    Image i of a split depends on the seed, the split and i alone: not on the number of images, and on the task only
    through the background that `ratio` lets go with the class. Without that, every 8 consecutive images from a multiple
    of 8 hold each color, shape and background once and each texture twice, and every 64 hold all pairs of values of any
    two attributes equally often.

    The bias is the background; that of class k is number k. Of each class, `ratio` percent of the training and of the
    validation images are conflicting (rounded; exact where `size` is a multiple of 64); those of a smaller ratio are
    among those of a larger one. In the test set the background tells nothing.

    Args:
      split: "train", "validation" or "test"; the last two have `HELD_OUT` images.
      image_size: side at which the images are rendered; 0 for `SIDE`.
      task: one of `TASKS`, what labels tell: an attribute, or a pair such as "color_shape".
      size: number of training images.
      ratio: percentage of bias-conflicting images; at `UNRELATED`, 87.5, the background tells nothing.
      seed: decides everything.

    Raises:
      InputError: an option is out of range.
    """
    return Shapes(split, image_size, task=task, size=size, ratio=ratio, seed=seed)


def class_names(task: str) -> tuple[str, ...]:
    """Return what the classes of a task are called, to be put into its template of `TEMPLATES`.

    >>> class_names("texture"), class_names("color_shape")[1], class_names("color_background")[-1]
    (('plain', 'striped', 'dotted', 'checked'), 'red square', 'black shape on stone')

    Raises:
      InputError: there is no such task.
    """
    if task in ATTRIBUTES:
        return ATTRIBUTES[task]
    if task not in TASKS:
        raise unknown("task of shapes", task, TASKS)
    names = task.split("_")
    values = itertools.product(*(ATTRIBUTES[name] for name in names))
    return tuple(_phrase(dict(zip(names, pair, strict=True))) for pair in values)


def captions(source: Source, *, complete: bool = False, draw: int = 0) -> list[str]:
    """Return a caption for each image, such as "a photo of a red striped circle on grass".

    Each attribute is named with probability 3/4, at least one; the way of saying it varies, too. The words are those of
    `WORDS`. Caption i depends on the seed, the split, i and `draw` alone.

    Args:
      source: a split of `shapes`.
      complete: name all attributes.
      draw: another number gives other captions of the same images; 0 .. 2**16 - 1.

    Raises:
      InputError: the source is no split of `shapes`, or `draw` is out of range.
    """
    if not isinstance(source, Shapes):
        raise InputError(f"{source.name} has no captions: expected a split of shapes")
    if not 0 <= draw < 2**16:
        raise InputError(f"the draw of captions is {draw}: expected 0 to {2**16 - 1}")
    stream = _stream("captions", source.split)
    result = []
    for i, row in enumerate(source.attributes):
        u = np.random.RandomState(counters.bits(source.seed, stream, draw << 32 | i)).random_sample(7)
        named = complete | (u[:4] < _MENTIONED)
        named[int(4 * u[4])] = True
        values = {name: ATTRIBUTES[name][k] for name, k, said in zip(ATTRIBUTES, row, named, strict=True) if said}
        opening = _OPENINGS[int(len(_OPENINGS) * u[5])]
        result.append(f"{opening} {_phrase(values, _PLACES[int(len(_PLACES) * u[6])])}")
    return result


def tokens(texts: Sequence[str], length: int) -> np.ndarray:
    """Return texts as int32[N, length]: a start, one number a word, an end, padding; for a text tower of `VOCABULARY`.

    Padding is 0, word k of `WORDS` is k + 1, the start is `VOCABULARY` - 2 and the end `VOCABULARY` - 1: the largest of
    its row, as in CLIP's vocabulary. Case, punctuation and spaces do not matter.

    Raises:
      InputError: a word is not in `WORDS`, or a text is too long.
    """
    numbers = {word: k + 1 for k, word in enumerate(WORDS)}
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        words = re.findall(r"[^\W_]+", text.lower())
        for word in words:
            if word not in numbers:
                raise unknown("word", word, WORDS, f"it is in {text!r}, and the shapes world has these words alone")
        if len(words) + 2 > length:
            raise InputError(
                f"{text!r} has {len(words)} words: expected at most {length - 2}, with start and end {length}"
            )
        row[: len(words) + 2] = [VOCABULARY - 2, *(numbers[word] for word in words), VOCABULARY - 1]
    return rows


def _phrase(values: dict[str, str], place: str = "on") -> str:
    """Return what names these values of attributes: "red circle", "striped shape on grass"."""
    noun = values.get("shape", "shape")
    words = [values[name] for name in ("color", "texture") if name in values] + [noun]
    return " ".join([*words, place, values["background"]] if "background" in values else words)


def _stream(what: str, split: str) -> int:
    return counters.SHAPES + 3 * ("design", "pixels", "captions").index(what) + _SPLITS.index(split)


def _designed(seed: int, split: str, count: int) -> np.ndarray:
    """Return the attributes int32[count, 4] of the first images of a split, backgrounds unrelated to all else."""
    first, second = np.arange(8), np.arange(8)[:, None]
    blocks = []
    for block in range(-(-count // _BLOCK)):
        rng = np.random.RandomState(counters.bits(seed, _stream("design", split), block))
        s = np.stack([rng.permutation(first) for _ in range(8)])
        t = rng.permutation(second)
        lines = [s ^ t, s ^ _TIMES_2[_TIMES_2[t]], s, s ^ _TIMES_2[t]]
        columns = [rng.permutation(8)[line] for line in lines]  # names the values anew
        blocks.append(np.stack([columns[0], columns[1] // 2, *columns[2:]], -1).reshape(_BLOCK, 4))
    return np.concatenate(blocks)[:count].astype(np.int32)


def _labels(task: str, attributes: np.ndarray) -> np.ndarray:
    """Return int32[N]: of a pair of attributes the values of the second one vary first."""
    labels = np.zeros(len(attributes), np.int32)
    for name in task.split("_"):
        labels = labels * len(ATTRIBUTES[name]) + attributes[:, list(ATTRIBUTES).index(name)]
    return labels


def _correlated(backgrounds: np.ndarray, labels: np.ndarray, ratio: float) -> np.ndarray:
    """Return the backgrounds with those of `ratio` percent of each class kept in conflict, evenly spread over it.

    Of the first n conflicting images of a class round(n ratio / `UNRELATED`) keep their background, so that whether one
    does depends on nothing that comes after it.
    """
    result = backgrounds.copy()
    for k in np.unique(labels):
        conflicting = np.flatnonzero((labels == k) & (backgrounds != k))
        kept = np.floor(np.arange(len(conflicting) + 1) * (ratio / UNRELATED) + 0.5)
        result[conflicting[kept[1:] == kept[:-1]]] = k
    return result
