"""What the host costs a training step: steps handed to the device one by one, and the same steps scanned in one call.

    python benchmarks/dispatch.py [--batch=64] [--steps=96] [--chunk=8] [--repeats=15]

One by one is what the loop does: the next positions from the input pipeline, their way to the device, a call of the
compiled step on data that lies there, the loss of a few steps before waited for. In one call --chunk steps are scanned
over positions that go to the device together, in a program that is unrolled on a CPU. The model is that of
configs/art_digits.py without an attack: a small network on images of 8 x 8 pixels, as little work as a run has, where
the host shows most. Seconds are of --steps steps, CPU seconds those of all cores for this process; the ratio is that of
the seconds, paired by turn.
"""

from __future__ import annotations

import collections
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from rich.console import Console

from benchmarks import measure, options, training
from configs import art_digits
from jrobust import data, loops, methods
from jrobust.models import zoo
from jrobust.training import loop, parallel, program
from jrobust.training import state as train_states

ONE_BY_ONE, ONE_CALL = "one by one", "one call"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "", "not read: the network of configs/art_digits.py")
    parser.add_argument("--steps", type=int, default=96, help="steps that are timed together, a multiple of --chunk")
    parser.add_argument("--chunk", type=int, default=8, help="steps in one call")
    parsed = parser.parse_args(arguments)
    parsed.model, parsed.dtype = "small_cnn", "float32"
    parsed.batch = parsed.batch or 64
    chosen = options.resolve(parsed, local_model="small_cnn", model="small_cnn")
    return training.conclude(chosen, rows_of, notes, "dispatch", "steps one by one and in one call")


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Time both forms in turns."""
    console.print(f"batch {chosen.batch}: compiling", highlight=False)
    programs = {ONE_BY_ONE: run(chosen, 1), ONE_CALL: run(chosen, chosen.chunk)}
    timings = measure.in_turns(programs, chosen.repeats)
    fields = {"model": chosen.model, "dtype": dtype, "batch": chosen.batch, "chunk": chosen.chunk}
    rows = []
    for name, timing in timings.items():
        row: dict[str, Any] = {"name": name, **fields, "steps": chosen.steps, **timing.row()}
        row["images_per_second"] = chosen.batch * chosen.steps / row["seconds_median"]
        row["seconds_over_one_call"] = measure.ratio(timing, timings[ONE_CALL])
        rows.append(row | measure.machine())
    return rows


def run(chosen: Any, chunk: int) -> Callable[[], Any]:
    """Return what takes `chosen.steps` steps, `chunk` of them in a call."""
    config = art_digits.get_config("variant=natural")
    config.train.batch_size = chosen.batch
    source = data.load("digits", "train", "")
    batches = data.TrainBatches(source, chosen.batch, 0, resident=True)
    network = zoo.build(config.model, num_classes=10, input_shape=source.image_shape, mean=(0.5,), std=(0.5,))
    method, mesh = methods.build(config.method, network), parallel.make_mesh()
    assembled = program.assemble(
        method,
        config,
        next(batches),
        batches.resident,
        prepare=data.make_prepare(config.data.augment),
        mesh=mesh,
        steps_per_epoch=batches.steps_per_epoch,
        total_steps=1000,
    )
    layout, tx = assembled.parallel, assembled.optimizer.tx
    create = jax.jit(lambda key: train_states.create(method.init(key, {}), tx), out_shardings=layout.layout)
    state, resident, key = (
        create(jax.random.key(0)),
        layout.replicate(batches.resident),
        layout.replicate(jax.random.key(1)),
    )

    def scanned(state: Any, positions: Any, resident: Any, key: Any) -> Any:
        return loops.scan(lambda state, index: assembled.step(state, {"index": index}, resident, key), state, positions)

    def take() -> Any:
        """Return the next positions on the device."""
        if chunk == 1:
            return layout.shard(next(batches))
        return jax.device_put(np.stack([next(batches)["index"] for _ in range(chunk)]), layout.replicated)

    step = layout.step if chunk == 1 else jax.jit(scanned, donate_argnums=0)
    compiled, _ = measure.compile_ahead(step, state, take(), resident, key)

    def steps() -> Any:
        nonlocal state
        ahead: collections.deque[Any] = collections.deque()
        for _ in range(chosen.steps // chunk):
            positions = take()
            with jax.transfer_guard("disallow"):
                state, metrics = compiled(state, positions, resident, key)
                ahead.append(metrics["loss"])
                if len(ahead) > max(1, loop.AHEAD // chunk):
                    ahead.popleft().block_until_ready()
        return state

    return steps


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the line below the table."""
    low, middle, high = rows[0]["seconds_over_one_call"]
    work = ", ".join(f"{row['name']} {row['cpu_seconds_median'] / row['steps'] * 1000:.2f}" for row in rows)
    return [
        f"{ONE_BY_ONE} takes {middle:.2f} times as long as {ONE_CALL} ({low:.2f} to {high:.2f})",
        f"CPU milliseconds of a step: {work}",
    ]


if __name__ == "__main__":
    main()
