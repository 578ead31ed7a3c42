"""Training steps as `launch/run.py` compiles them, on random images that lie on the device: compiled, and timed."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import measure, tables
from jrobust.data.pipeline import make_prepare
from jrobust.training import cost, parallel, program
from jrobust.training import state as train_states

RESIDENT_BATCHES = 4  # of images on the device


class Program(NamedTuple):
    """One compiled program.

    Attributes:
      run: takes the next step.
      steps: of the attack.
      fields: of its row.
      cost: counts what one call costs, which may compile it once more.
    """

    run: Callable[[], Any]
    steps: int
    fields: dict[str, Any]
    cost: Callable[[], cost.Cost] | None = None


def assemble(
    config: Any, method: Any, batch: int, shape: Sequence[int], devices: int | None = None
) -> tuple[program.Program, tuple[Any, ...]]:
    """Return the step of a config with a method, and the shapes of what it takes in one view; nothing is computed.

    Args:
      config: its augmentation, its optimizer and its section `train` are taken.
      method: as for `program.assemble`.
      batch: images, on all devices together.
      shape: of an image on the device.
      devices: the first so many; all by default.
    """
    count = RESIDENT_BATCHES * batch
    resident = {
        "image": jax.ShapeDtypeStruct((count, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    index = {"index": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    found = program.assemble(
        method,
        config,
        index,
        resident,
        prepare=make_prepare(config.data.augment),
        mesh=parallel.make_mesh(devices),
        steps_per_epoch=100,
        total_steps=1000,
    )
    return found, found.in_one_view(index, resident)


def compile_step(
    config: Any,
    method: Any,
    batch: int,
    *,
    shape: Sequence[int],
    num_classes: int,
    devices: int | None = None,
) -> Program:
    """Compile the step of a config over the devices and place what it needs.

    Args:
      config: as for `assemble`, as are method, batch, shape and devices.
      num_classes: of the labels.
    """
    assembled, in_one_view = assemble(config, method, batch, shape, devices)
    step = assembled.parallel

    rng = np.random.default_rng(0)
    count = RESIDENT_BATCHES * batch
    images = {
        "image": rng.integers(0, 256, (count, *shape), np.uint8),
        "label": rng.integers(0, num_classes, count, np.int32),
    }
    variables = initial(method)
    start = train_states.create(variables, assembled.optimizer.tx)
    state = jax.device_put(start, step.layout)
    resident, key = (step.replicate(tree) for tree in (images, jax.random.key(1)))
    placed = [
        step.shard({"index": np.arange(i * batch, (i + 1) * batch, dtype=np.int32)}) for i in range(RESIDENT_BATCHES)
    ]
    compiled, seconds = measure.compile_ahead(step.step, state, placed[0], resident, key)
    fields = measure.program_fields(compiled, seconds, assembled.step, *in_one_view)

    done = 0

    def run() -> Any:
        nonlocal state, done
        state, metrics = compiled(state, placed[done % RESIDENT_BATCHES], resident, key)  # the old state is donated
        done += 1
        return metrics

    steps = config.method.get("biasadv", config.method).get("num_steps", 0)
    return Program(run, steps, fields, lambda: cost.of_compiled(compiled, assembled.step, *in_one_view))


def initial(method: Any) -> Any:
    """Return the variables of a method as arrays that share nothing: they will be donated."""
    return jax.jit(method.init)(jax.random.key(0, impl="rbg"), {})  # compiles four times faster


def compile_call(function: Callable, *arguments: Any, steps: int) -> Program:
    """Compile a function of these arrays on one device; `steps` are those of the attack that it is."""
    compiled, seconds = measure.compile_ahead(jax.jit(function), *arguments)
    fields = measure.program_fields(compiled, seconds, function, *arguments)
    return Program(
        lambda: compiled(*arguments), steps, fields, lambda: cost.of_compiled(compiled, function, *arguments)
    )


@functools.cache
def forward_flops(network: Any, batch: int) -> float | None:
    """Return the compiler's FLOPs of one forward pass of a batch through a network, in inference."""
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *network.input_shape), jnp.float32)
    return cost.flops(lambda p, s, x: network.apply(p, s, x, mask_mode="mean").logits, params, state, images)


def timed(
    programs: Mapping[str, Program],
    fields: Mapping[str, Any],
    repeats: int,
    *,
    forward_flops: Callable[[str], float | None],
    counted: Callable[[str], float],
    baseline: str,
) -> list[dict[str, Any]]:
    """Time programs of one type in turns, beside a matrix product, and return their rows.

    Args:
      programs: by name.
      fields: of every row; `dtype` and `batch` among them.
      repeats: of each program.
      forward_flops: of a program's name: the FLOPs of one forward pass of the batch.
      counted: of a name: the forward passes' worth of its work, counted by hand.
      baseline: the program that the seconds of the others are compared with.
    """
    product, product_flops = cost.matrix_product(fields["dtype"])
    timings = measure.in_turns({"matrix product": product} | {name: p.run for name, p in programs.items()}, repeats)
    matrix_rate = jax.device_count() * product_flops / min(timings["matrix product"].seconds)
    rows = []
    for name, found in programs.items():
        row = {"name": name, "program": name, **fields, "steps": found.steps} | timings[name].row() | found.fields
        row |= measure.rates(
            row,
            matrix_rate=matrix_rate,
            forward_flops=forward_flops(name),
            counted=counted(name),
        )
        row[f"seconds_over_{baseline}"] = measure.ratio(timings[name], timings[baseline])
        rows.append(row | measure.machine())
    return rows


def beside(row: Mapping[str, Any], baseline: str) -> str:
    """Return a line on the seconds of a row over those of the baseline of `timed`, a step of 3 passes."""
    low, middle, high = row[f"seconds_over_{baseline}"]
    times = f"{middle:.2f} times the seconds of {baseline} (quartiles {low:.2f} .. {high:.2f})"
    return f"{row['dtype']} {row['name']}: {times}; {row['passes_counted'] / 3:.2f} by passes"


def conclude(
    chosen: Any,
    rows_of: Callable[[Any, str, Console], list[dict[str, Any]]],
    notes: Callable[[Sequence[dict[str, Any]]], list[str]],
    name: str,
    title: str,
) -> list[dict[str, Any]]:
    """Measure in each type, print and write; return the rows.

    Args:
      chosen: the options.
      rows_of: measures in one type.
      notes: lines below the table.
      name: of the file.
      title: of the table.
    """
    console = tables.console()
    load_before = measure.load_average()  # once: later it is this program's own work
    rows = [row for dtype in chosen.dtype for row in rows_of(chosen, dtype, console)]
    rows = [row | {"load_before": load_before, "load_after": measure.load_average()} for row in rows]
    tables.report(rows, title, console, notes(rows))
    console.print(f"wrote {measure.write(rows, name, chosen.output, title)}", soft_wrap=True, highlight=False)
    return rows


def draw(picture: Callable[[Any, pathlib.Path], bool], rows: Sequence[dict[str, Any]], name: str, output: str) -> None:
    """Draw rows beside their file, if matplotlib is installed and there is something to see; say where.

    Args:
      picture: draws rows into a file and returns whether it did.
      rows, name, output: as for `conclude`.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return
    path = measure.results_file(rows, name, output).with_suffix(".png")
    if picture(rows, path):
        tables.console().print(f"drew {path}", soft_wrap=True, highlight=False)
