"""The training loop. It knows no method: any `Method`, any batches, any optimizer."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jrobust.errors import InputError
from jrobust.training import durations, parallel, processes, run_folder
from jrobust.training import state as train_states
from jrobust.training.accuracy import HostBatch, make_accuracy
from jrobust.training.checkpoint import Checkpoints
from jrobust.training.clock import Clock
from jrobust.training.logging import DivergedError, RunLog, Window, shortest
from jrobust.training.method import Batch, Method, Variables
from jrobust.training.program import assemble
from jrobust.training.progress import Progress, duration
from jrobust.training.signals import stop_signals
from jrobust.training.state import TrainState
from jrobust.training.step import Prepare

# Steps the host may be ahead of the device: enough to hide its work, few enough to bound the batches in memory.
AHEAD = 4


class Batches(Protocol):
    """Batches without end, with a position that can be saved."""

    steps_per_epoch: int
    resident: Any  # arrays that stay on the device, handed to `prepare`; None or empty for none

    def __next__(self) -> Mapping[str, np.ndarray]:
        """Return the next host batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return the position as JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        ...


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a run.

    Attributes:
      step, total_steps: where it stopped and where it was to stop.
      train_state: the state there, on the mesh, parameters and method's state whole on every device.
      metrics: the newest measurements on held-out images.
      resumed_from: the step of the checkpoint it started from, 0 for none.
      parameters: number of trained scalars.
      seconds, compile_seconds: of this session's steps, and of compiling the step.
      signal: the signal that stopped it before the end, or None.
    """

    step: int
    total_steps: int
    train_state: TrainState
    metrics: dict[str, float]
    resumed_from: int
    parameters: int
    seconds: float
    compile_seconds: float
    signal: int | None = None


def train(
    method: Method,
    config: Any,
    workdir: str | pathlib.Path,
    *,
    batches: Batches,
    prepare: Prepare,
    test_batches: Callable[[], Iterable[HostBatch]] | None = None,
    mesh: Mesh | None = None,
    initialize: Callable[[jax.Array, Batch], Variables] | None = None,
    progress: Callable[..., Progress] = Progress,
) -> Summary:
    """Train to the length that the config says, from scratch or from the newest whole checkpoint in `workdir`.

    A run that was killed and is started again goes on as if nothing had happened: on CPU with the same parameters to
    the bit and the same metrics.jsonl to the byte. SIGTERM and Ctrl-C save a checkpoint and return. Several processes
    (`jax.distributed`) make the same call on a folder that all of them see, each with batches of its own part.

    Args:
      method: whose loss is minimised, for whole batches: the trainer calls its `with_axis`.
      config: a ConfigDict with the sections seed, train, checkpoint and optimizer; all of it is written to config.json.
      workdir: the run's folder; made if it does not exist.
      batches: of the training set, each of `train.batch_size`.
      prepare: see `make_train_step`.
      test_batches: makes one pass over the held-out images, those of `train.evaluate_split`, for the accuracy during
        training; None to measure nothing.
      mesh: one-dimensional, named `data`; all devices by default.
      initialize: makes the first variables, `method.init` by default. Not called on resuming.
      progress: makes what shows the progress.

    Raises:
      InputError: the batch does not divide by devices and microbatches, the folder holds another run, no checkpoint in
        it is whole, the run is already longer than asked, or training diverged (the last checkpoint is kept).
    """
    mesh = mesh or parallel.make_mesh()
    parallel.check_divisible(config.train.batch_size, mesh, config.train.microbatches)
    with contextlib.ExitStack() as stack:
        opened = run_folder.opened(workdir, config.to_dict())
        folder = pathlib.Path(processes.from_primary(lambda: str(stack.enter_context(opened))))
        processes.together(lambda: run_folder.check_shared(folder))
        checkpoints = Checkpoints(
            folder, keep_latest=config.checkpoint.keep_latest, keep_best=config.checkpoint.keep_best
        )
        stack.callback(checkpoints.close)
        run = _Run(method, config, batches, prepare, mesh, checkpoints)
        run.start(initialize or jax.jit(lambda key, batch: method.init(key, batch)))
        # Not before all of the config has been found good: a folder belongs to the config in it.
        if processes.is_primary():
            run_folder.write_json(folder / "config.json", config.to_dict())
            run_folder.record_environment(folder, config.seed, step=run.step)
        log = RunLog(folder if processes.is_primary() else None, step=run.step)
        stack.callback(log.close)
        show = progress(run.total, step=run.step)
        stack.callback(show.close)
        return run.go(log, show, test_batches)


class _Run:
    """The parts of one session of training, put together once."""

    def __init__(
        self, method: Method, config: Any, batches: Batches, prepare: Prepare, mesh: Mesh, checkpoints: Checkpoints
    ):
        self.method, self.batches, self.prepare, self.mesh, self.checkpoints = (
            method,
            batches,
            prepare,
            mesh,
            checkpoints,
        )
        self.config = config
        per_epoch = batches.steps_per_epoch
        self.total = durations.total_steps(config.train, steps_per_epoch=per_epoch, batch_size=config.train.batch_size)
        self.evaluate_every = durations.period(config.train, "evaluate_every", steps_per_epoch=per_epoch)
        self.log_every = durations.period(config.train, "log_every", steps_per_epoch=per_epoch)
        self.save_every = durations.period(config.checkpoint, "every", steps_per_epoch=per_epoch)
        self.accuracy = make_accuracy(method.logits, mesh)
        self.split = config.train.get("evaluate_split", "test")  # that of the batches to measure on
        self.step = self.saved = self.resumed_from = 0
        self.metrics: dict[str, float] = {}
        self.window = Window()

    def start(self, initialize: Callable[[jax.Array, Batch], Variables]) -> None:
        """Set the state and the position of the batches: from the newest checkpoint, or fresh."""
        init_key, step_key = jax.random.split(jax.random.key(self.config.seed))
        # One batch ahead of the first step, for the shapes.
        self.first: Mapping[str, np.ndarray] | None = next(self.batches)
        program = assemble(
            self.method,
            self.config,
            self.first,
            self.batches.resident,
            prepare=self.prepare,
            mesh=self.mesh,
            steps_per_epoch=self.batches.steps_per_epoch,
            total_steps=self.total,
        )
        self.optimizer, self.parallel = program.optimizer, program.parallel
        restored = self.checkpoints.restore(program.state)
        if restored is None:
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), program.example)
            tx, layout = self.optimizer.tx, self.parallel.layout
            create = jax.jit(lambda variables: train_states.create(variables, tx), out_shardings=layout)
            self.state = create(self.parallel.replicate(initialize(init_key, zeros)))
        else:
            self.state, self.metrics = restored.train_state, restored.metrics
            self.step = self.saved = self.resumed_from = int(self.state.step)
            self.window = Window(restored.extra["window"])
            self.batches.set_state(restored.pipeline)
            self.first = None
        if self.step > self.total:
            raise InputError(
                f"{self.checkpoints.directory} is at step {self.step} and the config asks for {self.total}: set a"
                " longer train.steps, train.examples or train.epochs"
            )
        self.resident = self.parallel.replicate(self.batches.resident)
        self.key = self.parallel.replicate(step_key)

    def go(self, log: RunLog, show: Progress, test_batches: Callable[[], Iterable[HostBatch]] | None) -> Summary:
        """Take the steps that are left."""
        parameters = train_states.count_parameters(self.state.params)
        clock = Clock(self.step)
        if self.resumed_from:
            show.line(f"resuming from step {self.step} of {self.total}")
        with stop_signals() as stop:
            train_step: Any = None
            in_flight: collections.deque[Any] = collections.deque()
            while self.step < self.total and not stop.before(self.step):
                batch = self.parallel.shard(self._next_batch())
                if train_step is None:
                    with clock.compiling():
                        train_step = self.parallel.compile(self.state, batch, self.resident, self.key)
                    log.throughput(self.step, {"compile_seconds": round(clock.compile_seconds, 3)})
                    show.line(f"compiled the step in {duration(clock.compile_seconds)}")
                with jax.transfer_guard("disallow"):  # a hidden copy between host and device would be an error
                    self.state, metrics = train_step(self.state, batch, self.resident, self.key)
                    in_flight.append(metrics["loss"])
                    if len(in_flight) > AHEAD:
                        in_flight.popleft().block_until_ready()
                self.step += 1
                self.window.add(self.step, metrics)
                show.advance(self.step)
                self._events(log, show, clock, test_batches)
            if stop.signal is not None and self.step > self.saved:
                self._save(log, clock, {})
        return Summary(
            step=self.step,
            total_steps=self.total,
            train_state=self.parallel.gather(self.state),
            metrics=self.metrics,
            resumed_from=self.resumed_from,
            parameters=parameters,
            seconds=clock.seconds,
            compile_seconds=clock.compile_seconds,
            signal=stop.signal if self.step < self.total else None,
        )

    def _next_batch(self) -> Mapping[str, np.ndarray]:
        if self.first is None:
            return next(self.batches)
        batch, self.first = self.first, None
        return batch

    def _events(
        self,
        log: RunLog,
        show: Progress,
        clock: Clock,
        test_batches: Callable[[], Iterable[HostBatch]] | None,
    ) -> None:
        """Record, measure and save what is due, in this order: a checkpoint finds its records on the disk."""
        if durations.due(self.step, self.log_every, self.total):
            self._record(log, show, clock)
        measured: dict[str, float] = {}
        if test_batches is not None and durations.due(self.step, self.evaluate_every, self.total):
            jax.block_until_ready(self.state)  # or the pause would take in the steps under way
            with clock.paused():
                accuracy = self.accuracy(
                    self.method.deployed(self.parallel.gather(self.state).variables), test_batches()
                )
                measured = {f"{self.split}_accuracy": shortest(accuracy)}
            self.metrics = measured
            log.metrics(self.step, self._position() | measured)
            show.line(f"step {self.step}/{self.total}: {self.split} accuracy {accuracy:.2%}")
        if durations.due(self.step, self.save_every, self.total):
            self._save(log, clock, measured)

    def _save(self, log: RunLog, clock: Clock, measured: dict[str, float]) -> None:
        """Save the state with the window of metrics that is not full yet."""
        extra = {"window": self._finite(self.window.rows)}  # waits for the device
        with clock.paused():
            log.sync()
            self.checkpoints.save(self.state, self.batches.get_state(), measured, extra)
        self.saved = self.step

    def _finite(self, fetch: Callable[[], Any]) -> Any:
        """Return what the window gives; if a value in it is not finite, say what is left of the run."""
        try:
            return fetch()
        except DivergedError as error:
            self.checkpoints.wait()
            steps = self.checkpoints.steps
            kept = f"the last checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved"
            raise DivergedError(f"{error}; {kept}; lower optimizer.learning_rate or look at the data") from None

    def _record(self, log: RunLog, show: Progress, clock: Clock) -> None:
        values = self._finite(self.window.close)  # waits for the device, so the time below is of whole steps
        rates = clock.lap(self.step, self.config.train.batch_size, self.total)
        rate = {"learning_rate": shortest(self.optimizer.learning_rate(self.step - 1))}
        log.metrics(self.step, self._position() | rate | values)
        log.throughput(self.step, rates)
        show.record(
            self.step,
            rate | values,
            images_per_second=rates["images_per_second"],
            seconds_left=rates["seconds_left"],
        )

    def _position(self) -> dict[str, float]:
        return {"epoch": round(self.step / self.batches.steps_per_epoch, 4)}
