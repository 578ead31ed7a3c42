"""The tables of docs/results/cpu.md: attacks, training steps and AutoAttack on a CPU, beside PyTorch and its libraries.

    python benchmarks/cpu_table.py                  # about twenty minutes on two idle cores
    python benchmarks/cpu_table.py --parts=attack   # only the parts whose name holds "attack"

Each part is a benchmark of its own, run as one types it; its command is in the document. The document is written after
every part, so that nothing is lost when the command is interrupted: begun again on the same commit, it goes on with the
parts that are missing. Rows are kept as JSON lines beside the results of other benchmarks. Run it on an idle machine: a
benchmark that finds the CPU busy compares nobody, and its part is run again next time.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measure, tables
from jrobust import provenance
from jrobust.errors import InputError

FOLDER = measure.ROOT / "benchmarks" / "results" / "cpu"
OUTPUT = measure.ROOT / "docs" / "results" / "cpu.md"
TITLE = "Throughput on a CPU"


class Part(NamedTuple):
    """One benchmark.

    Attributes:
      name: of its file of rows.
      command: without the interpreter and the output.
      minutes: on two idle cores, for the first estimate of the time that is left.
    """

    name: str
    command: str
    minutes: float


ATTACK = "benchmarks/attack_steps.py --dtype=float32"
PARTS = (
    Part("attack-resnet18", f"{ATTACK} --model=resnet18 --batch=16 --repeats=7", 3.0),
    Part("attack-wrn-16-4", f"{ATTACK} --model=wrn-16-4 --batch=16 --against=torch,torchattacks,foolbox", 1.5),
    Part("attack-wrn-28-10", f"{ATTACK} --model=wrn-28-10 --batch=4 --against=torch,torchattacks,foolbox", 3.0),
    Part("steps", "benchmarks/paper_steps.py", 10.0),
    Part("autoattack", "benchmarks/autoattack.py --local", 2.0),
)


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Run what is missing and write the document; return the number of parts that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="", help="a word: only parts whose name holds it")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="of the rows")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="the document")
    chosen = parser.parse_args(arguments)
    wanted = [part for part in parts if chosen.parts in part.name]
    if not wanted:
        raise InputError(f"--parts={chosen.parts}: expected a word out of {', '.join(part.name for part in parts)}")
    chosen.folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in wanted if not is_done(chosen.folder / f"{part.name}.json")]
    for part in wanted:
        if part not in missing:
            print(f"{part.name}: measured before, on this commit", flush=True)
    failed, begin, planned = [], time.perf_counter(), 0.0
    for i, part in enumerate(missing):
        spent = time.perf_counter() - begin
        pace = spent / planned if planned else 60.0  # seconds for a planned minute
        left = pace * sum(other.minutes for other in missing[i:]) / 60
        print(f"\n{part.name} ({i + 1} of {len(missing)}), about {left:.0f} minutes left in all", flush=True)
        if i:
            settle()
        command = [*shlex.split(part.command), f"--output={chosen.folder / f'{part.name}.json'}"]
        if status := subprocess.run([sys.executable, *command], cwd=measure.ROOT).returncode:
            print(f"{part.name} ended with status {status}", flush=True)
            failed.append(part.name)
        planned += part.minutes
        document(chosen.folder, chosen.output, parts)
    document(chosen.folder, chosen.output, parts)
    print(f"\nwrote {chosen.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return len(failed)


def settle(longest: float = 150.0) -> None:
    """Wait until the load of the last minute, which the part before has left, would not be taken for other work."""
    begin = time.perf_counter()
    while (measure.load_average() or 0) > 0.45 * measure.cpu_cores() and time.perf_counter() - begin < longest:
        time.sleep(1)


def is_done(path: pathlib.Path) -> bool:
    """Return whether a file holds rows of this commit, measured on an idle machine."""
    if not path.is_file():
        return False
    first = tables.read(path)[0]
    return first["commit"] == provenance.commit() and not measure.is_busy(first)


def document(folder: pathlib.Path, output: pathlib.Path, parts: Sequence[Part] = PARTS) -> None:
    """Write the document of the parts that have rows."""
    files = [path for part in parts if (path := folder / f"{part.name}.json").is_file()]
    if files:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(tables.markdown(files, TITLE), encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(min(main(), 1))
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the parts that ended are in the document; begin again to go on")
