"""Suite `natural_shift`: a classifier of ImageNet's classes on images of them that come from elsewhere.

As in Xiao et al., "Masked Images Are Counterfactual Samples for Robust Fine-tuning", CVPR 2023, and in WiSE-FT.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.data.catalogue_zero_shot import DATA_SETS
from jrobust.data.imagenet_names import wnids
from jrobust.data.imagenet_subsets import IMAGENET_A, IMAGENET_R, OBJECTNET
from jrobust.data.zero_shot_sets import SHIFTS
from jrobust.errors import InputError, unknown
from jrobust.evaluation import wise_ft
from jrobust.evaluation.accuracy import clean_warnings, joined, keep_valid
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.class_sets import MISSING, Sets, present
from jrobust.evaluation.estimates import mean_of_groups, proportion
from jrobust.evaluation.progress import track
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

PREFIX = "shift:"  # before the name of a set, to whom loads it
KNOWN = tuple(name.removeprefix(PREFIX) for name in SHIFTS)
SETS = ("imagenet", "imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet", "imagenet_a")
AVERAGE = "average_shift"
# Lists of classes, in groups: a prediction is right if it is in the group of the label.
LISTS = {
    "r": tuple((k,) for k in IMAGENET_R),
    "objectnet": tuple(OBJECTNET.values()),
    "a": tuple((k,) for k in IMAGENET_A),
}
LIST_OF = {"imagenet_r": "r", "objectnet": "objectnet", "imagenet_a": "a"}
LIST_NAMES = {"r": "R", "objectnet": "ObjectNet", "a": "A"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which data sets.

    Attributes:
      sets: names of `KNOWN`. SET:LIST, such as imagenet:a, are the images of a set whose classes are in the list of
        ImageNet-A ("a"), ImageNet-R ("r") or ObjectNet ("objectnet"), scored as the images of that set are.
      missing: what is done if some cannot be loaded: "error", or "skip" to go on without them, with a warning.
      shares: of a fine-tuned CLIP, from 0 to 1, the rest being the original: WiSE-FT's curve, () for none.
    """

    sets: tuple[str, ...] = SETS
    missing: str = "error"
    shares: tuple[float, ...] = ()

    def __post_init__(self):
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise InputError(f"sets={','.join(self.sets)}: expected at least one data set, each once")
        for name in self.sets:
            base, colon, of = name.partition(":")
            if base not in KNOWN:
                raise unknown("data set", base, KNOWN, "each may be followed by :LIST, as imagenet:a")
            if colon and of not in LISTS:
                raise unknown("list of classes", of, LISTS)
            if colon and base in LIST_OF:
                raise InputError(f"{name}: {base} has its own list of classes; leave :{of} out")
        if self.missing not in MISSING:
            raise unknown("missing", self.missing, MISSING)

    def ordered(self) -> list[str]:
        """Return the names in the order of tables: the whole sets in that of `KNOWN`, then parts of sets."""
        return sorted(self.sets, key=lambda name: (":" in name, KNOWN.index(name.partition(":")[0])))


class ShiftSet(NamedTuple):
    """A data set that is evaluated.

    Attributes:
      name: by which it was asked for.
      source: its images.
      order: int64[N], the positions that are taken.
      allowed: bool[1000], the classes among which is predicted.
      accepted: bool[K, 1000], which predictions are right, by the source's own label.
    """

    name: str
    source: Any
    order: np.ndarray
    allowed: np.ndarray
    accepted: np.ndarray


def title(name: str) -> str:
    """Return how tables call a set.

    >>> title("imagenet_v2"), title("imagenet:a")
    ('V2', 'IN (A)')
    """
    base, _, of = name.partition(":")
    return SHIFTS[PREFIX + base].column + (f" ({LIST_NAMES[of]})" if of else "")


def check(settings: Settings, subject: Subject, source: Any, sets: Sets | None) -> None:
    """Raise InputError if the subject's classes are not ImageNet's in their order, or a set is missing that may not.

    Names other than WordNet ids are not compared; nothing is loaded without `sets`.
    """
    names, ids = [str(name) for name in subject.class_names], wnids()
    named = set(names) & set(ids)
    if len(names) != len(ids) or (named and tuple(names) != ids):
        what = f"{len(names)} classes" if len(names) != len(ids) else "ImageNet's classes in another order"
        raise InputError(
            f"{subject.name!r} has {what}: suite natural_shift needs ImageNet's {len(ids)}, in the order of their"
            " WordNet ids, as data.name=imagenet gives them"
        )
    wise_ft.check(settings.shares, subject)
    if sets is not None:
        opened(settings, sets, 0)


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    sets: Sets | None = None,
    batch_size: int = 256,
    examples: int = 0,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Return the accuracy on each data set, and its unweighted mean over the shifts, ImageNet left out.

        prediction    = argmax over k in C_s of z_k,  C_s the classes of set s: 200 of A and R, 125 of ObjectNet
        <s>           = share of images whose prediction is right: the label, of ObjectNet any class of the folder
        average_shift = (1 / S) sum_s <s> over V2, R, Sketch, ObjectNet and A, as far as they are there

    Intervals: Wilson for a set; for the mean, whose sets are fixed, normal with the variances of the sets' shares. With
    `shares` the curve and the table `wise_ft` have both between the original and the fine-tuned model. In the table of
    images `label` is the source's: of ObjectNet the number of the folder among the 113.

    Args:
      subject: what is evaluated, a classifier of ImageNet's 1000 classes.
      source: its own test set, which is not looked at.
      settings: of this suite.
      sets: loads "shift:<name>": the images, and anything.
      batch_size, examples, seed, progress, mesh: as in the accuracy suite; `examples` of each set.

    Raises:
      InputError: see `check` and `opened`.
    """
    settings = settings or Settings()
    check(settings, subject, source, None)
    chosen, warnings = opened(settings, sets, examples)
    found: dict[str, dict[str, np.ndarray]] = {}
    seconds = {}
    total = sum(len(of.order) for of in chosen)
    with jax.default_matmul_precision("highest"), track("natural_shift", total, progress) as advance:
        for of in chosen:
            begin = time.perf_counter()
            found[of.name] = _measured(subject, of, batch_size, mesh, advance)
            seconds[of.name] = time.perf_counter() - begin
            if progress:
                share = 100 * found[of.name]["correct"].mean()
                print(f"natural_shift: {title(of.name)} {share:.2f}", file=sys.stderr, flush=True)
    record = Record.of("natural_shift", subject, source, examples=total, seed=seed)
    record.dataset, record.class_names = ", ".join(title(of.name) for of in chosen), []
    record.settings, record.seconds = dataclasses.asdict(settings), sum(seconds.values())
    _summarise(record, chosen, found, seconds)
    record.warnings = warnings + clean_warnings(record.columns)
    del record.columns["finite"]
    alone = dataclasses.replace(settings, shares=())
    at = functools.partial(run, source=source, settings=alone, sets=sets, batch_size=batch_size, examples=examples)
    between = functools.partial(at, seed=seed, progress=False, mesh=mesh)
    wise_ft.add(record, subject, settings.shares, (SETS[0], AVERAGE), lambda s: between(s).metrics, mesh)
    return record


def opened(settings: Settings, sets: Sets | None, examples: int) -> tuple[list[ShiftSet], list[str]]:
    """Return the data sets that are there, in the order of tables, and sentences on what is doubtful.

    Raises:
      InputError: some are missing (one line names them all), or all; or one has classes that are not its own.
    """
    names = settings.ordered()
    asked = list(dict.fromkeys(PREFIX + name.partition(":")[0] for name in names))
    loaded, warnings = present(asked, sets, settings.missing, lambda name: SHIFTS[name].column, len(asked))
    there = [(name, loaded[key][0]) for name in names if (key := PREFIX + name.partition(":")[0]) in loaded]
    for base, source in {name.partition(":")[0]: source for name, source in there}.items():
        official = DATA_SETS[base].counts["test"]
        if len(source) != official:
            warnings.append(
                f"{title(base)} has {len(source):,} images here, the published set {official:,}: these accuracies are"
                " not those of the set"
            )
    return [_scored(name, source, examples) for name, source in there], warnings


def _scored(name: str, source: Any, examples: int) -> ShiftSet:
    """Return a set with the classes among which is predicted and what is right for each of its labels."""
    base, _, of = name.partition(":")
    groups = LISTS.get(of or LIST_OF.get(base, ""), tuple((k,) for k in range(len(wnids()))))
    allowed = np.zeros(len(wnids()), bool)
    allowed[[k for group in groups for k in group]] = True
    group_of: Mapping[str, tuple[int, ...]]
    if base == "objectnet":
        group_of, expected = OBJECTNET, "an object that is in ImageNet"
    else:
        group_of, expected = dict.fromkeys(wnids(), ()), "a WordNet id of ImageNet"
        group_of |= {wnids()[k]: group for group in groups for k in group}
    accepted = np.zeros((len(source.class_names), len(wnids())), bool)
    for label, class_name in enumerate(source.class_names):
        if class_name not in group_of:
            raise InputError(f"class {label} of {base} is called {class_name!r}: expected {expected}")
        accepted[label, list(group_of[class_name])] = True
    listed = np.any(accepted, axis=1)[source.labels]
    if not of and not listed.all():
        label = source.labels[int(np.argmin(listed))]
        raise InputError(
            f"{base} has images of class {source.class_names[label]}, which is none of its {len(groups)} classes: is"
            " this another data set?"
        )
    positions = np.flatnonzero(listed)
    if not len(positions):
        raise InputError(f"{name}: {source.name} has no images of these classes here; leave it out")
    return ShiftSet(name, source, positions[choose(positions, examples)], allowed, accepted)


def _measured(
    subject: Subject, of: ShiftSet, batch_size: int, mesh: jax.sharding.Mesh | None, advance: Callable[[float], None]
) -> dict[str, np.ndarray]:
    """Return the columns of a data set, a line an image."""
    rows = []
    for batch in batches(of.source, batch_size, of.order, mesh):
        prediction, finite = _predict(subject.logits, subject.variables, batch["image"], of.allowed)
        columns = {"index": batch["index"], "label": batch["label"], "prediction": prediction, "finite": finite}
        rows.append(keep_valid(batch, columns))
        advance(len(rows[-1]["index"]))
    found = joined(rows)
    right = of.accepted[found["label"], found["prediction"]] & found["finite"]
    return {"set": np.full(len(right), of.name)} | found | {"correct": right}


@functools.partial(jax.jit, static_argnums=0)
def _predict(logits: Any, variables: Any, images: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the class of the largest logit among those that are allowed, int32[B], and whether these are finite."""
    scores = logits(variables, images)
    prediction = jnp.argmax(jnp.where(allowed, scores, -jnp.inf), axis=-1).astype(jnp.int32)
    return prediction, jnp.all(jnp.isfinite(scores) | ~allowed, axis=-1)


def _summarise(
    record: Record, chosen: Sequence[ShiftSet], found: dict[str, dict[str, np.ndarray]], seconds: dict[str, float]
) -> None:
    """Fill in the metrics, the tables and the columns."""
    rows = []
    for of in chosen:
        hits, classes = found[of.name]["correct"], int(of.allowed.sum())
        record.metrics[of.name] = proportion(hits)
        record.protocols[of.name] = f"images as they are, predictions among {classes} classes"
        shown = len(np.unique(of.source.labels[of.order]))
        source = f"{of.source.name} {of.source.split}"
        rows.append([title(of.name), source, len(hits), shown, classes, seconds[of.name]])
    columns = ["set", "data set", "images", "labels in them", "classes predicted", "seconds"]
    cells = {title(of.name): record.metrics[of.name].value for of in chosen}
    shifts = [name for name in found if name in SETS[1:]]
    if shifts:
        record.metrics[AVERAGE] = mean_of_groups([found[name]["correct"] for name in shifts])
        record.protocols[AVERAGE] = f"mean over {', '.join(map(title, shifts))}"
        cells["Avg shifts"] = record.metrics[AVERAGE].value
    record.tables["natural_shift"] = {"columns": ["", *cells], "rows": [["accuracy", *cells.values()]]}
    record.tables["sets"] = {"columns": columns, "rows": rows}
    record.columns = joined(list(found.values()))
