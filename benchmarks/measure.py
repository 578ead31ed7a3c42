"""What the benchmarks share: timing, rates of a row, one JSON line a row.

* A program is compiled ahead of time (its seconds are a column of their own), run once to warm up, and timed to the end
  of its computation. Programs that are compared are timed in turns, A B C A B C, so that a busy machine hurts all. On a
  CPU each library has a process of its own (benchmarks/processes.py).
* FLOPs and memory are the compiler's: see jrobust/training/cost.py, which counts them.
* The share is FLOPs / median seconds over the rate of the best of some large matrix products of the same type, measured
  in the same process, in turns with the rows. The floor is the time that the passes counted by hand would take at it.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jrobust import provenance
from jrobust.training import cost

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Clock(NamedTuple):
    """Seconds of one call, by the clock and of all cores' work for its process."""

    seconds: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every repetition of one program, by the clock and of all cores' work for this process."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """Return a quantile; 0.5 is the median."""
        return float(np.quantile(self.seconds, q))

    def row(self) -> dict[str, Any]:
        """Return the fields of a row that hold them."""
        return {
            "seconds_median": self.quantile(0.5),
            "seconds_quartiles": (self.quantile(0.25), self.quantile(0.75)),
            "seconds_all": self.seconds,
            "cpu_seconds_median": float(np.median(self.cpu_seconds)),
        }


def clock(program: Callable[[], Any]) -> Clock:
    """Call a program once; it returns arrays, which are waited for, or has finished when it returns.

    One that returns a `Clock` was timed in the process where it ran (benchmarks/processes.py).
    """
    begin = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(program())
    if isinstance(result, Clock):
        return result
    return Clock(time.perf_counter() - begin[0], time.process_time() - begin[1])


def in_turns(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time every program `repeats` times in turns, after one call of each that is not counted; see `clock`."""
    for program in programs.values():
        clock(program)
    clocks: dict[str, list[Clock]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            clocks[name].append(clock(program))
    return {name: Timing(*zip(*values, strict=True)) for name, values in clocks.items()}


def ratio(numerator: Timing, denominator: Timing) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile of the ratio of seconds, paired by turn."""
    ratios = np.asarray(numerator.seconds) / np.asarray(denominator.seconds)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def compile_ahead(function: Callable, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """Return the compiled program and the seconds of tracing and compiling it; `function` is jitted or mapped."""
    begin = time.perf_counter()
    compiled = function.lower(*arguments).compile()  # type: ignore[attr-defined]
    return compiled, time.perf_counter() - begin


def peak_bytes() -> int | None:
    """Return the allocator's highest mark on the first device since the process began; None on CPU."""
    stats = jax.devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def program_fields(
    compiled: jax.stages.Compiled, compile_seconds: float, function: Callable, *arguments: Any
) -> dict[str, Any]:
    """Return the fields of a row on its program; `function` is what is counted, in the view of all devices."""
    plan = cost.memory(compiled)
    return {
        "compile_seconds": compile_seconds,
        "flops": cost.flops(function, *arguments),
        "program_bytes": None if plan is None else plan.peak,
        "peak_bytes": peak_bytes(),
    }


def rates(
    row: Mapping[str, Any], *, matrix_rate: float, forward_flops: float | None, counted: float | None
) -> dict[str, Any]:
    """Return what follows from a row's `seconds_median`, `batch`, `steps` and `flops`.

    Args:
      row: `steps` is the number of gradient evaluations of the attack, 0 without one.
      matrix_rate: FLOP/s of the matrix product, over all devices.
      forward_flops: of one forward pass of the batch.
      counted: the forward passes' worth of convolutions that the program needs, counted by hand; None if unknown.
    """
    seconds, work = row["seconds_median"], row.get("flops")
    return {
        "images_per_second": row["batch"] / seconds,
        "attack_steps_per_second": row["batch"] * row["steps"] / seconds if row["steps"] else None,
        "forward_flops": forward_flops,
        "passes": work / forward_flops if work is not None and forward_flops is not None else None,
        "passes_counted": counted,
        "matrix_flops_per_second": matrix_rate,
        "floor_seconds": None if forward_flops is None or counted is None else forward_flops * counted / matrix_rate,
        "share": work / seconds / matrix_rate if work is not None else None,
    }


def machine() -> dict[str, Any]:
    """Return what a row has to say about where it was measured."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpu_cores": cpu_cores(),
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",  # type: ignore[attr-defined]
        "versions": provenance.versions() | {name: _version(name) for name in ("torch", "torchattacks", "foolbox")},
        "commit": provenance.commit(),
    }


def cpu_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float | None:
    """Return the machine's load of the last minute: runnable processes, this one among them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def is_busy(row: Mapping[str, Any]) -> bool:
    """Return whether a CPU had other work, more than half a process a core, when the row's measurement began."""
    return row["platform"] == "cpu" and (row["load_before"] or 0) > 0.5 * row["cpu_cores"]


def write(rows: Sequence[Mapping[str, Any]], name: str, output: str, title: str) -> pathlib.Path:
    """Write the rows as JSON lines to `output`, by default benchmarks/results/<date>-<device>-<name>.json.

    What the table is of and the command that was typed are in every row.
    """
    path = results_file(rows, name, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    added = {"benchmark": name, "title": title, "command": command()}
    path.write_text("".join(json.dumps(row | added, allow_nan=False) + "\n" for row in map(dict, rows)))
    return path


def results_file(rows: Sequence[Mapping[str, Any]], name: str, output: str) -> pathlib.Path:
    """Return where `write` writes."""
    return pathlib.Path(output) if output else ROOT / "benchmarks" / "results" / _file_name(rows[0], name)


def command() -> str:
    """Return the command that runs, as one types it in the repository, without where it writes."""
    script = pathlib.Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", str(name), *(word for word in sys.argv[1:] if not word.startswith("--output="))])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file_name(row: Mapping[str, Any], name: str) -> str:
    device = f"cpu-{row['cpu_cores']}-cores" if row["platform"] == "cpu" else f"{row['devices']}x-{row['device']}"
    return f"{row['date'][:10]}-{re.sub(r'[^a-z0-9]+', '-', device.lower())}-{name}.json"
