"""How time and memory grow with batch, pixels, attack steps, restarts, path points and devices.

    python benchmarks/growth.py [--model=wrn-28-10] [--batch=256] [--dtype=bfloat16]
    python benchmarks/growth.py --axes=restarts,points
    python benchmarks/growth.py --local                              # tiny, under two minutes on two cores
    python benchmarks/growth.py --local --document=docs/results/growth.md    # and the page, with the picture beside it

Each axis doubles one thing and leaves the rest: batch, pixels and devices those of a training step on adversarial
examples of two steps, as `launch/run.py` compiles it, with the batch of all devices together; steps and restarts those
of PGD, from two restarts on, for one has nothing to compare and drops its last forward pass; points those of integrated
gradients, in chunks of four. Batches but those of axis batch are a quarter of --batch, and all of it on axis devices.
On a CPU the devices are simulated: they share its cores, so that seconds do not fall with them. The points of an axis
are timed in turns.

It prints a table: images/s, median and quartiles of the seconds of a call, GFLOP of all devices as the compiler counts
them, and the memory that it plans for one device; below it the exponent of each, which is the slope of a straight line
through the logarithms by least squares. 1 is linear, and what has a part that does not grow, such as weights, the last
forward pass of an attack or the cost of a call, is below. FLOPs and memory are exact, and each axis has a range for the
exponents of the two; where one is outside, it is named and the status is 1. Seconds are measured and judged by nobody.
The same is written as JSON lines, one a row, and drawn beside them as PNG where matplotlib is installed.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import measure, options, tables, training
from configs import art_cifar10
from jrobust import methods
from jrobust.attacks import cross_entropy, linf, pgd, untargeted
from jrobust.attributions import integrated
from jrobust.errors import InputError, unknown
from jrobust.models.classifier import Classifier
from jrobust.reporting import growth as picture

DEVICES = 8  # simulated ones
CHUNK = 4  # points of a path that are in memory at once
EPS, STEP_SIZE = 8 / 255, 2 / 255


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Measure, print, write and draw; return what does not grow as it should."""
    parser = options.parser(__doc__ or "")
    parser.add_argument("--document", default="", help="a page in Markdown of the rows and the picture")
    parser.add_argument("--axes", default="", help=f"of {', '.join(AXES)}; default all")
    parsed = parser.parse_args(arguments)
    options.simulate_devices(DEVICES)
    parsed.batch = parsed.batch or (32 if parsed.local else 0)
    chosen = options.resolve(parsed, local_model="small_cnn")
    chosen.names = tuple(filter(None, chosen.axes.split(","))) or tuple(AXES)
    for name in chosen.names:
        if name not in AXES:
            raise unknown("--axes", name, AXES)
    if chosen.batch % 4:
        raise InputError(f"--batch={chosen.batch}: expected a multiple of 4, for it is halved twice")
    rows = training.conclude(chosen, rows_of, notes, "growth", "growth of time and memory")
    training.draw(picture.draw, rows, "growth", chosen.output)
    if chosen.document:
        page(rows, pathlib.Path(chosen.document), measure.results_file(rows, "growth", chosen.output))
    return surprises(rows)


def page(rows: Sequence[dict[str, Any]], document: pathlib.Path, results: pathlib.Path) -> None:
    """Write the table, the exponents and the picture, which comes beside the page, as a document."""
    drawn = results.with_suffix(".png")
    document.parent.mkdir(parents=True, exist_ok=True)
    parts = [tables.markdown([results], "Growth of time and memory"), *(f"* {line}" for line in notes(rows))]
    if drawn.is_file():
        shutil.copyfile(drawn, document.with_suffix(".png"))
        parts.append(f"\n![Seconds, FLOPs and memory over the first point]({document.stem}.png)")
    document.write_text("\n".join(parts) + "\n", encoding="utf-8")


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Measure the axes in one type, one after the other, the points of each in turns."""
    rows = []
    for name in chosen.names:
        console.print(f"{name} in {dtype}", highlight=False)
        axis = AXES[name]
        points = {value: axis.compile(chosen, dtype, value) for value in axis.values(chosen)}
        timings = measure.in_turns({str(value): point.program.run for value, point in points.items()}, chosen.repeats)
        for value, point in points.items():
            row = {"name": f"{name} {value}", "axis": name, "value": value, "model": chosen.model, "dtype": dtype}
            row |= {"batch": point.batch, "steps": point.program.steps} | timings[str(value)].row()
            row |= {"images_per_second": point.batch / row["seconds_median"]} | point.program.fields
            rows.append(row | measure.machine())
    return rows


class Point(NamedTuple):
    """A compiled program and its batch."""

    program: training.Program
    batch: int


class Axis(NamedTuple):
    """What is doubled.

    Attributes:
      values: the points.
      compile: the program of one of them.
      flops, memory: the least and the greatest exponent that is as it should be.
    """

    values: Callable[[Any], Sequence[int]]
    compile: Callable[[Any, str, int], Point]
    flops: tuple[float, float]
    memory: tuple[float, float]


def _network(chosen: Any, dtype: str, side: int) -> Classifier:
    return dataclasses.replace(options.classifier(chosen.model, dtype), input_shape=(side, side, 3))


def _step(chosen: Any, dtype: str, batch: int, side: int = 32, devices: int = 1) -> Point:
    """Compile a training step on adversarial examples."""
    network, config = _network(chosen, dtype, side), art_cifar10.get_config("variant=pgd")
    config.method.num_steps = 2
    program = training.compile_step(
        config,
        methods.build(config.method, network),
        batch,
        shape=network.input_shape,
        num_classes=network.num_classes,
        devices=devices,
    )
    return Point(program, batch)


def _call(chosen: Any, dtype: str, make: Callable[[Callable, jax.Array, jax.Array], Any], steps: int) -> Point:
    """Compile a function of logits, images and labels on one device."""
    network, batch = _network(chosen, dtype, 32), chosen.batch // 4
    params, state = jax.jit(network.init)(jax.random.key(0, impl="rbg"))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((batch, *network.input_shape), np.float32))
    labels = jnp.asarray(rng.integers(0, network.num_classes, batch, np.int32))

    def function(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        return make(lambda x: network.apply(params, state, x).logits, images, labels)

    return Point(training.compile_call(function, params, state, images, labels, steps=steps), batch)


def _attack(chosen: Any, dtype: str, steps: int, restarts: int = 1) -> Point:
    def attacked(logits: Callable, images: jax.Array, labels: jax.Array) -> jax.Array:
        objective = untargeted(logits, labels, loss=cross_entropy)
        threat, key = linf(EPS), jax.random.key(0)
        found = pgd(objective, images, key, threat=threat, step_size=STEP_SIZE, num_steps=steps, restarts=restarts)
        return found.adv_images

    return _call(chosen, dtype, attacked, steps * restarts)


def _path(chosen: Any, dtype: str, points: int) -> Point:
    def attributed(logits: Callable, images: jax.Array, labels: jax.Array) -> jax.Array:
        return integrated.ig_logit(logits, labels, num_points=points, chunk=CHUNK)(images)

    return _call(chosen, dtype, attributed, 0)


def _devices(chosen: Any) -> Sequence[int]:
    return [2**i for i in range(jax.device_count().bit_length()) if chosen.batch % 2**i == 0]


LINEAR, CONSTANT, SHARED = (0.85, 1.05), (-0.1, 0.1), (-1.0, -0.1)
GROWING = (0.3, 1.05)  # beside weights, their gradients and the resident images, which do not all grow
AXES = {
    "batch": Axis(lambda chosen: [chosen.batch // 2**i for i in (2, 1, 0)], _step, LINEAR, GROWING),
    "pixels": Axis(
        lambda chosen: [256, 1024, 4096],
        lambda chosen, dtype, value: _step(chosen, dtype, chosen.batch // 4, math.isqrt(value)),
        LINEAR,
        GROWING,
    ),
    "steps": Axis(lambda chosen: [2, 4, 8] if chosen.local else [5, 10, 20, 40], _attack, LINEAR, CONSTANT),
    "restarts": Axis(
        lambda chosen: [2, 4, 8],
        lambda chosen, dtype, value: _attack(chosen, dtype, 2, value),
        LINEAR,
        GROWING,
    ),
    "points": Axis(lambda chosen: [8, 16, 32] if chosen.local else [16, 32, 64, 128], _path, LINEAR, CONSTANT),
    "devices": Axis(
        _devices,
        lambda chosen, dtype, value: _step(chosen, dtype, chosen.batch, devices=value),
        CONSTANT,
        SHARED,
    ),
}


def exponent(values: Sequence[float], found: Sequence[float]) -> float:
    """Return the slope of the line through the logarithms, by least squares.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(values), np.log(found), 1)[0])


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each axis: how seconds, FLOPs and memory grow with it."""
    lines = []
    for axis, dtype in dict.fromkeys((row["axis"], row["dtype"]) for row in rows):
        own = [row for row in rows if (row["axis"], row["dtype"]) == (axis, dtype)]
        values = [row["value"] for row in own]
        parts = [
            f"{label} {exponent(values, [row[key] for row in own]):.2f}"
            for key, label in picture.QUANTITIES.items()
            if len(own) > 1 and all(row.get(key) for row in own)
        ]
        lines.append(f"{dtype} exponents with {axis}: {', '.join(parts) or 'one point has none'}")
    return lines


def surprises(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each exponent of FLOPs or memory that is outside of the range of its axis."""
    lines = []
    for axis, dtype in dict.fromkeys((row["axis"], row["dtype"]) for row in rows):
        own = [row for row in rows if (row["axis"], row["dtype"]) == (axis, dtype)]
        ranges = {"flops": AXES[axis].flops, "program_bytes": AXES[axis].memory}
        for key, (least, greatest) in ranges.items():
            if len(own) < 2 or not all(row.get(key) for row in own):
                continue
            found = exponent([row["value"] for row in own], [row[key] for row in own])
            if not least <= found <= greatest:
                label = picture.QUANTITIES[key]
                lines.append(f"{dtype} {axis}: {label} grow with exponent {found:.2f}, not {least} to {greatest}")
    return lines


if __name__ == "__main__":
    try:
        if found := main():
            sys.exit("error: " + "; ".join(found))
    except InputError as error:
        sys.exit(f"error: {error}")
