"""Many runs as one: rows of a config, seeds, and fields that are swept one at a time; done runs are not repeated.

Each cell is an ordinary run in a folder of its own, which launch/run.py would go on with just as well.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import command
import session
from rich.console import Console

from jrobust import units
from jrobust.errors import InputError, unknown
from jrobust.evaluation.record import config_hash
from jrobust.reporting import curves, run_files, study_page, tables
from jrobust.reporting.study import NOTE, Group, Study, Sweep, between_table, measured, table, write_json
from jrobust.training import processes
from jrobust.training.logging import DivergedError
from jrobust.training.progress import Progress, duration

LOG = "run.log"
DEFAULTS = {"rows": ("",), "seeds": (0, 1, 2), "measures": ("accuracy",), "sweeps": (), "baseline": ""}


def start(argument: str, overrides: Sequence[str], section: Mapping[str, Any], workdir: str = "") -> int:
    """Run the study that a section of a config or flags describe; return the status of the command.

    The arguments are those of `of_section`.
    """
    return conduct(*of_section(argument, overrides, section, workdir))


def of_section(
    argument: str, overrides: Sequence[str], section: Mapping[str, Any], workdir: str = ""
) -> tuple[Study, dict[str, Any], pathlib.Path]:
    """Return the study that a section of a config or flags describe, the config of each run by its folder, and where.

    Args:
      argument: of --config.
      overrides: --config.FIELD=VALUE of every run; those of the section itself are in it already.
      section: the arguments of `plan`; each has a default.
      workdir: of the study; by default runs/<config>-study.

    Raises:
      InputError: as `plan`, or a field of the section that there is not.
    """
    if processes.count() > 1:
        raise InputError("a study is of one process: start each of its runs by itself, --config=FILE:words")
    for key in section:
        if key not in DEFAULTS:
            raise unknown("field of config.study", key, DEFAULTS)
    own = [word for word in overrides if not re.match(r"--?config\.study\.", word)]
    study, configs = plan(argument, own, **DEFAULTS | dict(section))
    path, _, words = argument.partition(":")
    name = _file_name("-".join(filter(None, (pathlib.PurePath(path).stem, words, "study"))))
    return study, configs, pathlib.Path(workdir or pathlib.Path("runs", name))


def plan(
    argument: str,
    overrides: Sequence[str],
    *,
    rows: Sequence[str],
    seeds: Sequence[int],
    measures: Sequence[str],
    sweeps: Sequence[str] = (),
    baseline: str = "",
) -> tuple[Study, dict[str, Any]]:
    """Return a study without results, and the config of each run by its folder.

    Args:
      argument: of --config: the file and the words of every run.
      overrides: --config.FIELD=VALUE of every run.
      rows: words that come behind those of `argument`; "" for none.
      seeds: of the runs of each row.
      measures: names of metrics.
      sweeps: "FIELD=VALUE,VALUE": each row with each of the values, the other fields as they are. A value that the
        row's config has anyway is the row itself, which is run once.
      baseline: a row that is not swept, drawn as a dashed line.

    Raises:
      InputError: a row or a field that is not there, a seed among the overrides, or two cells of one name.
    """
    for word in overrides:
        if re.match(r"--?config\.seed\b", word):
            raise InputError(f"{word}: a study sets the seed of every run; write launch/study.py with --seeds=0,1,2")
    if not rows or not seeds or not measures or len(set(seeds)) < len(seeds):
        raise InputError(f"a study needs rows, measures and seeds that differ: got {rows}, {measures} and {seeds}")
    configs: dict[str, Any] = {}
    groups: dict[str, Group] = {}

    def add(label: str, name: str, row: str, *changes: str) -> None:
        folders = tuple(f"{_file_name(name)}-seed{seed}" for seed in seeds)
        if taken := configs.keys() & set(folders):
            raise InputError(f"{label!r} and another row would share the folder {min(taken)}: leave one of them out")
        groups[label] = Group(label, folders)
        for seed, folder in zip(seeds, folders, strict=True):
            configs[folder] = _config(argument, row, [*overrides, *changes, f"--config.seed={seed}"])

    for row in dict.fromkeys([*rows, *([baseline] if baseline else [])]):
        add(_label(argument, row), _label(argument, row), row)
    drawn = []
    for row in dict.fromkeys(rows):
        for sweep in sweeps:
            field, values = _swept(sweep)
            points = []
            for value in values:
                change, label = f"--config.{field}={value}", _label(argument, row)
                if not _is_own(_config(argument, row, overrides), _config(argument, row, [*overrides, change]), field):
                    label += f", {field}={value}"
                    if label not in groups:
                        add(label, f"{_label(argument, row)}-{field}={value}", row, change)
                points.append((value, label))
            drawn.append(Sweep(_label(argument, row), field, tuple(points)))
    dashed = _label(argument, baseline) if baseline else ""
    found = Study(
        argument, tuple(overrides), tuple(measures), tuple(seeds), tuple(groups.values()), tuple(drawn), dashed
    )
    return found, configs


def conduct(study: Study, configs: Mapping[str, Any], workdir: pathlib.Path) -> int:
    """Train and evaluate what is not done yet, print and write the tables; return the status of the command.

    What a run prints goes to its run.log. A run that diverges is noted and the others go on.

    Raises:
      InputError: what stops a run before it begins; all are looked at before the first one.
    """
    start, failures = time.perf_counter(), []
    todo = [folder for folder, config in configs.items() if session.finished(config, workdir / folder) is None]
    for group in study.groups:
        with named(group.folders[0]):
            if group.folders[0] in todo:
                session.check(configs[group.folders[0]].copy_and_resolve_references(), workdir / group.folders[0])
    print(f"{len(configs)} runs in {workdir}, {len(configs) - len(todo)} of them done", flush=True)
    workdir.mkdir(parents=True, exist_ok=True)
    show, spent = Progress(len(configs)), []
    try:
        for i, (folder, config) in enumerate(configs.items()):
            begin = time.perf_counter()
            outcome = session.finished(config, workdir / folder)
            if outcome is None:
                try:
                    outcome = _run(config, workdir / folder, functools.partial(_Part, show, i))
                except DivergedError as error:
                    study.notes[folder] = str(error)
                    outcome = session.Outcome([str(error)])
                if outcome.signal is not None:
                    show.line(f"stopped in {folder}; the same command goes on from there")
                    return 128 + outcome.signal
                spent.append(time.perf_counter() - begin)
                todo.remove(folder)
            failures += [f"{folder}: {line}" for line in outcome.failures]
            if folder not in study.notes:
                run, of = run_files.read(workdir / folder), config_hash(workdir / folder)
                study.results[folder] = measured(run, study.measures, of)
                study.between[folder] = {suite: curves.between(run.records, suite, of) for suite in curves.BETWEEN}
            write_json(study, workdir)
            show.advance(i + 1)
            show.line(_line(study, folder, f"run {i + 1} of {len(configs)}", spent, len(todo)))
    finally:
        show.close()
    _show(study, study_page.write(study, workdir), time.perf_counter() - start)
    return command.conclude(failures)


class _Part(Progress):
    """The progress of one run, which also moves that of the study."""

    def __init__(self, whole: Progress, before: int, total: int, *, step: int = 0):
        super().__init__(total, step=step)
        self._whole, self._before = whole, before

    def advance(self, step: float) -> None:
        super().advance(step)
        self._whole.advance(self._before + step / self._total)


def _run(config: Any, workdir: pathlib.Path, progress: Any) -> session.Outcome:
    """Train and evaluate one cell; what it prints goes to its log."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        named(workdir.name),
        (workdir / LOG).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return session.run_one(config, workdir, progress=progress)


@contextlib.contextmanager
def named(folder: str) -> Iterator[None]:
    """Say in which run an error was."""
    try:
        yield
    except DivergedError:
        raise
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def _line(study: Study, folder: str, begin: str, spent: list[float], left: int) -> str:
    """Return the line that tells of a run, with the time that those left will take."""
    results = study.results.get(folder)
    parts = [f"{name} {tables.percent(value)}" for name, value in results.items()] if results else ["diverged"]
    later = f"; {duration(left * sum(spent) / len(spent))} left" if spent and left else ""
    return f"{begin}: {folder}: {', '.join(parts)}{later}"


def _show(study: Study, paths: list[pathlib.Path], seconds: float) -> None:
    """Print the tables and where everything is."""
    console = Console(width=160) if not Console().is_terminal else Console()
    every = [table(study, measure) for measure in study.measures]
    for found in [*every, *(between_table(study, suite) for suite in study.suites_between())]:
        console.print(tables.rich_table(found.title, found.columns, found.rows))
    console.print(NOTE, highlight=False, markup=False)
    print(f"everything in {duration(seconds)}")
    print("wrote " + "\n      ".join(map(str, paths)), flush=True)


def _config(argument: str, row: str, overrides: Sequence[str]) -> Any:
    """Return the config of a run as launch/run.py would read it."""
    path, _, words = argument.partition(":")
    joined = ",".join(filter(None, (words, row)))
    with named(f"row {_label(argument, row)}"):
        config = command.read_config(f"{path}:{joined}" if joined else path, overrides)
    if "study" in config:
        with config.unlocked():
            del config.study
    return config


def _label(argument: str, row: str) -> str:
    """Return what tables call a row: its words, or those of the config, or the name of the file."""
    path, _, words = argument.partition(":")
    return row or words or pathlib.PurePath(path).stem


def _swept(sweep: str) -> tuple[str, list[str]]:
    """Return the field of a sweep and its values."""
    field, equals, values = sweep.removeprefix("config.").partition("=")
    if not (field and equals and values) or field.split(".")[0] in ("seed", "study"):
        raise InputError(f"sweep {sweep!r} is not of the form FIELD=VALUE,VALUE with a field of the config")
    return field, [value for value in dict.fromkeys(values.split(",")) if value]


def _is_own(config: Any, changed: Any, field: str) -> bool:
    """Return whether a swept value is the one that the config has."""
    value, new = (functools.reduce(lambda section, key: section[key], field.split("."), c) for c in (config, changed))
    if isinstance(value, str) and value != new:
        with contextlib.suppress(InputError):  # "0.5" and ".5" are the same radius
            return units.parse(value) == units.parse(new)
    return value == new


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", label)
