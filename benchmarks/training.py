"""Training steps as `launch/run.py` compiles them, on random images that lie on the device: compiled, and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import measure, tables
from jrobust.data.pipeline import make_prepare
from jrobust.training import cost, optimizers, parallel
from jrobust.training import state as train_states
from jrobust.training.step import make_train_step

RESIDENT_BATCHES = 4  # of images on the device


class Program(NamedTuple):
    """One compiled program.

    Attributes:
      run: takes the next step.
      steps: of the attack.
      fields: of its row.
    """

    run: Callable[[], Any]
    steps: int
    fields: dict[str, Any]


def make_step(config: Any, method: Any, variables: Any, axis: str | None = None) -> tuple[Any, Any]:
    """Return the training step of a config with this method, and the optimizer that it uses."""
    tx = optimizers.build(config.optimizer, variables.params, steps_per_epoch=100, total_steps=1000).tx
    return make_train_step(method, tx, make_prepare(config.data.augment), axis), tx


def compile_step(
    config: Any,
    make_method: Callable[[str | None], Any],
    batch: int,
    *,
    shape: Sequence[int],
    num_classes: int,
    mode: str = "jit",
) -> Program:
    """Compile the step of a config over all devices and place what it needs.

    Args:
      config: its augmentation and its optimizer are taken.
      make_method: from the name of the axis of devices to the method.
      batch: images, on all devices together.
      shape: of an image on the device.
      num_classes: of the labels.
      mode: of `parallel.MODES`.
    """
    axis = parallel.axis_name(mode)
    method = make_method(axis)
    variables = jax.jit(method.init)(jax.random.key(0), {})  # arrays that share nothing: they will be donated
    train_step, tx = make_step(config, method, variables, axis)
    step = parallel.parallelize(train_step, parallel.make_mesh(), mode)

    rng = np.random.default_rng(0)
    count = RESIDENT_BATCHES * batch
    resident = {
        "image": rng.integers(0, 256, (count, *shape), np.uint8),
        "label": rng.integers(0, num_classes, count, np.int32),
    }
    start = train_states.create(variables, tx)
    state, resident, key = (step.replicate(tree) for tree in (start, resident, jax.random.key(1)))
    placed = [
        step.shard({"index": np.arange(i * batch, (i + 1) * batch, dtype=np.int32)}) for i in range(RESIDENT_BATCHES)
    ]
    compiled, seconds = measure.compile_ahead(step.step, state, placed[0], resident, key)
    whole, _ = make_step(config, make_method(None), variables)  # the work of all devices together
    fields = measure.program_fields(compiled, seconds, whole, state, {"index": jnp.arange(batch)}, resident, key)

    done = 0

    def run() -> Any:
        nonlocal state, done
        state, metrics = compiled(state, placed[done % RESIDENT_BATCHES], resident, key)  # the old state is donated
        done += 1
        return metrics

    return Program(run, config.method.get("biasadv", config.method).get("num_steps", 0), fields)


def timed(
    programs: Mapping[str, Program],
    fields: Mapping[str, Any],
    repeats: int,
    *,
    forward_flops: Callable[[str], float | None],
    counted: Callable[[str, int], float],
    baseline: str,
) -> list[dict[str, Any]]:
    """Time programs of one type in turns, beside a matrix product, and return their rows.

    Args:
      programs: by name.
      fields: of every row; `dtype` and `batch` among them.
      repeats: of each program.
      forward_flops: of a program's name: the FLOPs of one forward pass of the batch.
      counted: of a name and the steps of its attack: the forward passes' worth of its work, counted by hand.
      baseline: the program that the seconds of the others are compared with.
    """
    product, product_flops = cost.matrix_product(fields["dtype"])
    timings = measure.in_turns({"matrix product": product} | {name: p.run for name, p in programs.items()}, repeats)
    matrix_rate = jax.device_count() * product_flops / min(timings["matrix product"].seconds)
    rows = []
    for name, program in programs.items():
        row = {"name": name, "program": name, **fields, "steps": program.steps} | timings[name].row() | program.fields
        row |= measure.rates(
            row,
            matrix_rate=matrix_rate,
            forward_flops=forward_flops(name),
            counted=counted(name, program.steps),
        )
        row[f"seconds_over_{baseline}"] = measure.ratio(timings[name], timings[baseline])
        rows.append(row | measure.machine())
    return rows


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
