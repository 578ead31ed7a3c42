"""The table of suites, and the one call that runs some of them and writes their records."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import sys
import typing
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jrobust.errors import InputError, unknown
from jrobust.evaluation import (
    accuracy,
    attribution,
    autoattack,
    bias,
    interpolation,
    localization,
    masking,
    natural_shift,
    robustness,
    sanity,
    transfer,
    zero_shot,
)
from jrobust.evaluation.batches import Cropped
from jrobust.evaluation.class_sets import Sets
from jrobust.evaluation.record import Record, config_hash
from jrobust.evaluation.subject import Subject, replicated

SUITES: dict[str, ModuleType] = {
    "accuracy": accuracy,
    "bias": bias,
    "robustness": robustness,
    "autoattack": autoattack,
    "sanity": sanity,
    "attribution": attribution,
    "transfer": transfer,
    "localization": localization,
    "masking": masking,
    "zero_shot": zero_shot,
    "interpolation": interpolation,
    "natural_shift": natural_shift,
}

# Suites that take other models: images are transferred from them, or they are shown beside the subject.
WITH_OTHERS = ("transfer", "sanity", "bias")

# Suites that save how far they are, and go on from there.
RESUMABLE = ("autoattack", "zero_shot", "interpolation")

# Suites that take data sets beside the subject's own.
WITH_SETS = ("zero_shot", "interpolation", "natural_shift")

# What a section of the config may set beside the fields of the suite; without them the suite takes config.evaluation's.
SHARED = ("batch_size", "examples")


def settings_of(name: str, section: Mapping[str, Any]) -> Any:
    """Return a suite's settings, its defaults replaced by the values of a config section of the suite's name.

    Raises:
      InputError: there is no such suite, or it has no such setting.
    """
    kind = _module(name).Settings
    allowed = {field.name for field in dataclasses.fields(kind)}
    values = {}
    for key, value in dict(section).items():
        if key in SHARED:
            continue
        if key not in allowed:
            raise unknown(f"setting of suite {name}", key, sorted(allowed | set(SHARED)))
        values[key] = tuple(value) if isinstance(value, list | tuple) else value
    return kind(**values)


def overridden(names: Sequence[str], settings: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """Return config.evaluation with fields of the named suites replaced, as `--suite.FIELD=TEXT` of the command does.

    A field is set in every named suite that has it, its text read as the field's type: "20,40" is the tuple (20, 40).

    >>> overridden(["robustness"], {}, {"eps": "4/255", "num_steps": "5,10"})
    {'robustness': {'eps': '4/255', 'num_steps': (5, 10)}}

    Raises:
      InputError: none of the suites has the field (names the nearest), or the text is not of its type.
    """
    result = {**settings, **{name: dict(settings.get(name) or {}) for name in names}}
    fields = {name: typing.get_type_hints(_module(name).Settings) | dict.fromkeys(SHARED, int) for name in names}
    allowed = sorted(set().union(*fields.values()))
    for word, text in words.items():
        if word not in allowed:
            raise unknown(f"setting of {', '.join(names)}", word, allowed)
        for name in names:
            if word in fields[name]:
                result[name][word] = _typed(word, text, fields[name][word])
    return result


def check(
    names: Sequence[str],
    subject: Subject,
    source: Any,
    settings: Mapping[str, Any],
    *,
    crop_size: int = 0,
    sets: Sets | None = None,
) -> dict[str, Any]:
    """Return the settings of suites by name, if they fit the images as they are evaluated; see `run_suites`.

    The subject's variables are not looked at: a run is checked before it is trained.
    """
    source = Cropped(source, crop_size) if crop_size else source
    chosen = {name: settings_of(name, settings.get(name) or {}) for name in names}
    for name, chosen_settings in chosen.items():
        if check_suite := getattr(SUITES[name], "check", None):
            check_suite(chosen_settings, subject, source, *((sets,) if name in WITH_SETS else ()))
    return chosen


def run_suites(
    names: Sequence[str],
    subject: Subject,
    source: Any,
    settings: Mapping[str, Any],
    workdir: str | os.PathLike | None = None,
    *,
    against: Sequence[Subject] = (),
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    crop_size: int = 0,
    sets: Sets | None = None,
) -> list[Record]:
    """Run suites on a subject and write WORKDIR/evaluation/<suite>.json, .csv (per example) and .npz (gallery).

    All names and settings are checked before the first suite runs, and each record is written as soon as it exists.

    Args:
      names: of suites, e.g. ("accuracy", "robustness").
      subject: what is evaluated.
      source: the images: `jrobust.data.registry.load(name, "test", dir)`, `jrobust.data.source.from_arrays(...)`.
      settings: config.evaluation: `batch_size`, `examples` (0 for all), and a section a suite, each field optional.
      workdir: the run's folder; None to write nothing.
      against: other models, for the suites transfer, sanity and bias.
      seed: of random starts and of the order in which the attribution suite takes images.
      progress: whether to show a line with the time left, and the paths written.
      mesh: devices to spread batches over; batch sizes are rounded up to a multiple of its size.
      crop_size: side of the centre crop of every image, `config.data.augment.crop_size`; 0 for none.
      sets: loads other data sets by name, with the texts of their classes, for the suites of `WITH_SETS`.

    Raises:
      InputError: an unknown suite or setting, or one that does not fit the images.
    """
    sets = functools.cache(sets) if sets is not None else None  # what is checked here is evaluated below
    chosen = check(names, subject, source, settings, crop_size=crop_size, sets=sets)
    compared = [name for name in names if name in WITH_OTHERS]
    if "transfer" in names or (against and compared):
        transfer.checked([subject, *against])
    for model in against:
        check(compared, model, source, settings, crop_size=crop_size)
    source = Cropped(source, crop_size) if crop_size else source
    if mesh is not None:
        subject, *against = [replicated(model, mesh) for model in (subject, *against)]
    records = []
    for name, chosen_settings in chosen.items():
        shared = {"batch_size": 256, "examples": 0} | {k: settings[k] for k in SHARED if k in settings}
        shared |= getattr(SUITES[name], "DEFAULTS", {}) | dict(settings.get(name) or {})
        size = int(shared["batch_size"])
        if size < 1:
            raise InputError(f"batch_size={size} of suite {name}: expected at least 1")
        devices = int(np.prod(list(mesh.shape.values()))) if mesh is not None else 1
        record = SUITES[name].run(
            subject,
            source,
            chosen_settings,
            batch_size=-(-size // devices) * devices,
            examples=int(shared["examples"]),
            seed=seed,
            progress=progress,
            mesh=mesh,
            **({"against": against} if name in WITH_OTHERS else {}),
            **({"workdir": workdir} if name in RESUMABLE else {}),
            **({"sets": sets} if name in WITH_SETS else {}),
        )
        record.config_hash = config_hash(workdir)
        record.warnings[:0] = [subject.note] if subject.note else []
        if workdir is not None:
            paths = record.write(pathlib.Path(workdir) / "evaluation")
            if name in RESUMABLE:
                SUITES[name].forget(workdir)
            if progress:
                print(f"{name}: wrote {', '.join(str(path) for path in paths)}", file=sys.stderr, flush=True)
        records.append(record)
    return records


def _module(name: str) -> ModuleType:
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name]


def _typed(word: str, text: str, kind: Any) -> Any:
    """Read text as bool, int, float, str, or a tuple of one of them."""
    if typing.get_origin(kind) is tuple:
        return tuple(_typed(word, part, typing.get_args(kind)[0]) for part in text.split(",") if part)
    if kind is bool:
        choices = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in choices:
            raise InputError(f"{word}={text!r}: expected true or false")
        return choices[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{word}={text!r}: expected {expected}") from error
