"""Data sets with classes of their own: which images of each are taken, and averages over the sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jrobust import units
from jrobust.data.zero_shot_sets import EVERY, PAPER, SETS, strided_rows
from jrobust.errors import InputError, unknown
from jrobust.evaluation.batches import choose
from jrobust.evaluation.estimates import Estimate, mean_of_groups
from jrobust.evaluation.subject import Subject

Prompts = Sequence[Sequence[str]]
Sets = Callable[[str], tuple[Any, Prompts]]  # a name -> the images, and the texts of each class

OWN = ("own", "")  # names of the subject's own test set; a command line cannot say the second
MISSING = ("error", "skip")
SAMPLES = ("full", f"strided{EVERY}")
FEW = 0.5  # a smaller share of the classes in a sample is warned of


@dataclasses.dataclass(frozen=True)
class ClassSets:
    """Which data sets, which of their images, and PGD; radii and step sizes are text in pixel units of [0, 1].

    Attributes:
      sets: names of data sets; by default the sixteen of PMG-AFT. "own" (or "") is the subject's own test set.
      source: the set that was trained on; averages are given without it too. "" for none.
      missing: what is done if some cannot be loaded: "error", or "skip" to go on without them, with a warning.
      sample: "full", or "strided20": image i is taken where floor(i / 256) is a multiple of 20, as in the published
        tables. Sets sorted by class then hold few of their classes.
      eps, step_size, num_steps, random_start: of PGD, Linf. The step size is the same at every radius.
    """

    sets: tuple[str, ...] = tuple(PAPER)
    source: str = ""
    missing: str = "error"
    sample: str = "full"
    eps: str = "1/255"
    step_size: str = "1/255"
    num_steps: int = 10
    random_start: bool = True

    def __post_init__(self):
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise InputError(f"sets={','.join(self.sets)}: expected at least one data set, each once")
        if self.source and self.source not in (*self.sets, *SETS):
            raise unknown("source", self.source, sorted({*self.sets, *SETS}))
        for word, value, allowed in (("missing", self.missing, MISSING), ("sample", self.sample, SAMPLES)):
            if value not in allowed:
                raise unknown(word, value, allowed)
        if self.num_steps < 1:
            raise InputError(f"num_steps={self.num_steps}: expected at least 1")
        units.parse(self.eps), units.parse(self.step_size)


class ClassSet(NamedTuple):
    """A data set that is evaluated.

    Attributes:
      name: by which it was asked for.
      source: its images.
      prompts: a list of texts a class; None for the subject's own classes.
      order: int64[N], the positions that are taken.
    """

    name: str
    source: Any
    prompts: Prompts | None
    order: np.ndarray

    @property
    def title(self) -> str:
        """Return how tables call it."""
        return title(self.name)

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.source.class_names)

    @property
    def classes_taken(self) -> int:
        """Return how many of them the taken images show."""
        return len(np.unique(self.source.labels[self.order]))

    def model(self, subject: Subject) -> Subject:
        """Return a subject as a classifier of this set's classes."""
        if self.prompts is None or subject.zero_shot is None:
            return subject
        return dataclasses.replace(subject.zero_shot.for_classes(self.prompts), name=subject.name)


def title(name: str) -> str:
    """Return how tables call a data set.

    >>> title("flowers102"), title("mine"), title("own")
    ('Flow', 'mine', 'own test set')
    """
    return SETS[name].column if name in SETS else "own test set" if name in OWN else name


def check(settings: ClassSets, subject: Subject, own: Any, sets: Sets | None) -> None:
    """Raise InputError if the subject has classes other than texts, or a data set is missing that may not.

    Nothing is loaded without `sets`.
    """
    if subject.zero_shot is None:
        raise InputError(
            f"{subject.name!r} cannot take other classes: data sets with classes of their own need a model whose"
            " classes are texts, such as CLIP (a Subject of your own: give it `zero_shot`)"
        )
    if sets is not None:
        opened(settings, own, sets, 0)


def opened(settings: ClassSets, own: Any, sets: Sets | None, examples: int) -> tuple[list[ClassSet], list[str]]:
    """Return the data sets that are there, in the order of the paper's columns, and sentences on what is doubtful.

    Args:
      settings: names them.
      own: the subject's own test set.
      sets: loads the others.
      examples: so many images of each, spread evenly over its sample; 0 for all.

    Raises:
      InputError: some are missing (one line names them all), or all; or a set has another number of prompts than
        classes.
    """
    names = (*(known for known in SETS if known in settings.sets), *(n for n in settings.sets if n not in SETS))
    others = [name for name in names if name not in OWN]
    loaded, warnings = present(others, sets, settings.missing, title, len(names))
    found = []
    for name in names:
        if name in OWN:
            found.append(_taken(OWN[0], own, None, settings.sample, examples))
        elif name in loaded:
            source, prompts = loaded[name]
            if len(prompts) != len(source.class_names):
                raise InputError(
                    f"data set {name!r} has {len(source.class_names)} classes and prompts for {len(prompts)}: expected"
                    " a list of texts for each class"
                )
            found.append(_taken(name, source, prompts, settings.sample, examples))
    few = [part for part in found if part.classes_taken < FEW * part.classes]
    if few:
        texts = ", ".join(f"{part.title} {part.classes_taken} of {part.classes}" for part in few)
        warnings.append(
            f"the images taken show few of the classes: {texts}; these accuracies are not those of the sets"
        )
    return found, warnings


def present(
    names: Sequence[str], sets: Sets | None, missing: str, title: Callable[[str], str], total: int
) -> tuple[dict[str, tuple[Any, Prompts]], list[str]]:
    """Return the data sets of these names that can be loaded, and a sentence on the others.

    Args:
      names: of the data sets.
      sets: loads them.
      missing: "error" or "skip".
      title: how tables call a set.
      total: the number of sets with those that need no loading.

    Raises:
      InputError: some are missing and may not (one line names them all), or there is none at all.
    """
    if names and sets is None:
        raise InputError("nothing loads the data sets: pass run_suites(..., sets=...), as launch/evaluate.py does")
    loaded: dict[str, tuple[Any, Prompts]] = {}
    lost = []
    for name in names:
        try:
            loaded[name] = sets(name) if sets is not None else (None, ())
        except InputError as error:
            lost.append(f"{title(name)} ({error})")
    nothing = len(lost) == total
    if lost and (missing == "error" or nothing):
        advice = "" if nothing else "; prepare them, or go on without them: missing=skip"
        raise InputError(f"{len(lost)} of {total} data sets are not there: {'; '.join(lost)}{advice}")
    return loaded, [f"{len(lost)} of {total} data sets were skipped: {'; '.join(lost)}"] if lost else []


def averages(hits: Mapping[str, np.ndarray], source: str) -> dict[str, Estimate]:
    """Return the unweighted mean over data sets of their accuracies, and that without the one trained on.

    Args:
      hits: of each data set whether each image is right, bool[N].
      source: the set trained on. Without one there is only "average", else "zero_shot_average" too.
    """
    found = {"average": mean_of_groups(list(hits.values()))}
    others = [column for name, column in hits.items() if name != source]
    if source and others:
        found["zero_shot_average"] = mean_of_groups(others)
    return found


def described(parts: Sequence[ClassSet], sample: str) -> str:
    """Return the data sets as records name them: averages of other sets or samples are other numbers."""
    return f"{', '.join(part.title for part in parts)} ({sample})"


def _taken(name: str, source: Any, prompts: Prompts | None, sample: str, examples: int) -> ClassSet:
    positions = np.arange(len(source)) if sample == "full" else strided_rows(len(source))
    if not len(positions):
        choose(source, 0)  # raises
    return ClassSet(name, source, prompts, positions[choose(positions, examples)])
