"""The table of suites, and the one call that runs some of them and writes their records."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jrobust.errors import InputError, unknown
from jrobust.evaluation import accuracy, attribution, localization, robustness, transfer
from jrobust.evaluation.batches import Cropped
from jrobust.evaluation.record import Record, config_hash
from jrobust.evaluation.subject import Subject

SUITES: dict[str, ModuleType] = {
    "accuracy": accuracy,
    "robustness": robustness,
    "attribution": attribution,
    "transfer": transfer,
    "localization": localization,
}

# What a section of the config may set beside the fields of the suite; without them the suite takes config.evaluation's.
SHARED = ("batch_size", "examples")


def settings_of(name: str, section: Mapping[str, Any]) -> Any:
    """Return a suite's settings, its defaults replaced by the values of a config section of the suite's name.

    Raises:
      InputError: there is no such suite, or it has no such setting.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    kind = SUITES[name].Settings
    allowed = {field.name for field in dataclasses.fields(kind)}
    values = {}
    for key, value in dict(section).items():
        if key in SHARED:
            continue
        if key not in allowed:
            raise unknown(f"setting of suite {name}", key, sorted(allowed | set(SHARED)))
        values[key] = tuple(value) if isinstance(value, list | tuple) else value
    return kind(**values)


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
) -> list[Record]:
    """Run suites on a subject and write WORKDIR/evaluation/<suite>.json, .csv (per example) and .npz (gallery).

    All names and settings are checked before the first suite runs, and each record is written as soon as it exists.

    Args:
      names: of suites, e.g. ("accuracy", "robustness").
      subject: what is evaluated.
      source: the images: `jrobust.data.registry.load(name, "test", dir)`, `jrobust.data.source.from_arrays(...)`.
      settings: config.evaluation: `batch_size`, `examples` (0 for all), and a section a suite, each field optional.
      workdir: the run's folder; None to write nothing.
      against: other models, for the transfer suite.
      seed: of random starts and of the order in which the attribution suite takes images.
      progress: whether to show a line with the time left, and the paths written.
      mesh: devices to spread batches over; batch sizes are rounded up to a multiple of its size.
      crop_size: side of the centre crop of every image, `config.data.augment.crop_size`; 0 for none.

    Raises:
      InputError: an unknown suite or setting, or one that does not fit the images.
    """
    source = Cropped(source, crop_size) if crop_size else source
    chosen = {name: settings_of(name, settings.get(name) or {}) for name in names}
    if "transfer" in names:
        transfer.checked([subject, *against])
    for name, chosen_settings in chosen.items():
        if check := getattr(SUITES[name], "check", None):
            check(chosen_settings, subject, source)
    records = []
    for name, chosen_settings in chosen.items():
        section = dict(settings.get(name) or {})
        size = int(section.get("batch_size", settings.get("batch_size", 256)))
        if size < 1:
            raise InputError(f"batch_size={size} of suite {name}: expected at least 1")
        devices = int(np.prod(list(mesh.shape.values()))) if mesh is not None else 1
        record = SUITES[name].run(
            subject,
            source,
            chosen_settings,
            batch_size=-(-size // devices) * devices,
            examples=int(section.get("examples", settings.get("examples", 0))),
            seed=seed,
            progress=progress,
            mesh=mesh,
            **({"against": against} if name == "transfer" else {}),
        )
        record.config_hash = config_hash(workdir)
        if workdir is not None:
            paths = record.write(pathlib.Path(workdir) / "evaluation")
            if progress:
                print(f"{name}: wrote {', '.join(str(path) for path in paths)}", file=sys.stderr, flush=True)
        records.append(record)
    return records
