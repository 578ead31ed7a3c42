"""What launch/run.py --dry_run prints: what a run would need and how long it would take at least; nothing is trained.

The step is compiled as the run would compile it, on shapes: no train state and no images lie on a device. The time is
that of a roofline (see jrobust/training/cost.py), so a floor and no forecast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import assembly
import grid
import jax
import pretraining
import session
import stages
from jax.sharding import Mesh
from rich.filesize import decimal

from jrobust import data, loops
from jrobust.errors import InputError
from jrobust.training import collectives, cost, durations, parallel, program
from jrobust.training.layout import bytes_on_each
from jrobust.training.progress import duration
from jrobust.training.state import count_parameters


@dataclasses.dataclass(frozen=True)
class Plan:
    """One stage of a run, compiled.

    Attributes:
      state: shapes of the train state.
      resident, batch: bytes of the training set and of a batch, on each device.
      cost: of a step.
      forward_flops: of the deployed network on a batch.
      traffic: what devices send each other in a step, by operation.
      steps, steps_per_epoch: of the stage.
      compile_seconds: of the step.
    """

    state: Any
    resident: int
    batch: int
    cost: cost.Cost
    forward_flops: float | None
    traffic: Mapping[str, collectives.Traffic]
    steps: int
    steps_per_epoch: int
    compile_seconds: float


def prepare(dry: bool, devices: int) -> None:
    """Give the host as many devices as --devices says, where it says any; to be called before JAX looks for devices.

    Raises:
      InputError: there is no such number, or it is no dry run.
    """
    if devices < 0:
        raise InputError(f"--devices={devices}: expected a number of devices, such as 8")
    if dry and jax.distributed.is_initialized():
        raise InputError("--dry_run is one process: start it without the others; --devices=N is for the devices of all")
    if devices and not dry:
        raise InputError("--devices goes with --dry_run: a run takes all devices that there are")
    if devices:
        jax.config.update("jax_num_cpu_devices", devices)


def start(config: Any, workdir: pathlib.Path, devices: int = 0) -> int:
    """Print what a run would cost on `devices` devices, 0 for those there are; return the status of the command.

    Raises:
      InputError: what would stop the run before it begins.
    """
    own, shared = run(config, workdir, _mesh(devices))
    print(f"\nthe whole run: at least {_time(own + shared)}, evaluation not counted")
    return 0


def start_study(argument: str, overrides: Sequence[str], section: Mapping[str, Any], workdir: str, devices: int) -> int:
    """Print what the first run of a study would cost, and how many follow; otherwise as `start`."""
    study, configs, folder = grid.of_section(argument, overrides, section, workdir)
    todo = {name: config for name, config in configs.items() if session.finished(config, folder / name) is None}
    print(f"study    {len(study.groups)} rows, {len(configs)} runs, {len(configs) - len(todo)} of them done")
    if not todo:
        return 0
    name, first = next(iter(todo.items()))
    print(f"first    {name}", flush=True)
    with grid.named(name):
        own, shared = run(first.copy_and_resolve_references(), folder / name, _mesh(devices))
    before = {pretraining.folder(config, folder / name) for name, config in todo.items() if "pretrain" in config}
    total = len(todo) * own + sum(not pretraining.done(path) for path in before) * shared
    print(
        f"\n{len(todo) - 1} runs follow: all {len(todo)} at least {_time(total)} if each were as long as the first,"
        " evaluation not counted"
    )
    return 0


def run(config: Any, workdir: pathlib.Path, mesh: Mesh) -> tuple[float, float]:
    """Print what each stage of a run would cost; return the least seconds of its own stages and of pretraining.

    Raises:
      InputError: what would stop the run before it begins.
    """
    parts, stage, before = session.check(config, workdir)
    own = shared = 0.0
    if before is not None:
        folder = pretraining.folder(config, workdir)
        if pretraining.done(folder):
            print(f"\nstage 1 of 2: pretrained in {folder}")
        else:
            shared = _stage("stage 1 of 2: pretraining", before, folder, mesh)
    if stage is not None:
        errors = stages.read(stage, parts, workdir)
        if errors is None:
            own = _stage("stage 1 of 2: identification", stage, workdir / stages.FOLDER, mesh)
            print(f"\nthe error set is not known yet: stage 2 repeats it {config.jtt.copies} times and is longer")
        else:
            print(f"\n{errors.text()}")
            parts, _ = stages.second(stage, parts, errors, workdir, None)
    title = "" if before is None and stage is None else "stage 2 of 2"
    return own + _stage(title, parts, workdir, mesh), shared


def plan(parts: assembly.Parts, mesh: Mesh) -> Plan:
    """Compile the step of parts over a mesh.

    Raises:
      InputError: the batch does not divide by devices and microbatches, or what else stops the training before it
        begins.
    """
    config = parts.config
    size = config.train.batch_size
    parallel.check_divisible(size, mesh, config.train.microbatches)
    batches = data.TrainBatches(parts.train, size, config.seed, resident=config.data.resident)
    batch, resident = jax.eval_shape(lambda *trees: trees, next(batches), batches.resident)
    batches.close()
    per_epoch = batches.steps_per_epoch
    steps = durations.total_steps(config.train, steps_per_epoch=per_epoch, batch_size=size)

    assembled = program.assemble(
        parts.method,
        config,
        batch,
        resident,
        prepare=data.make_prepare(config.data.augment),
        mesh=mesh,
        steps_per_epoch=per_epoch,
        total_steps=steps,
    )
    arguments = assembled.arguments(batch, resident)
    begin = time.perf_counter()
    # The host in the place of an accelerator: collectives in a rolled loop would be counted once.
    with loops.all_unrolled() if _stands_in(mesh) else contextlib.nullcontext():
        compiled = assembled.parallel.compile(*arguments)
    seconds = time.perf_counter() - begin
    deployed = jax.eval_shape(lambda variables: parts.method.deployed(variables), assembled.state.variables)
    return Plan(
        state=assembled.state,
        resident=bytes_of(resident),
        batch=bytes_of(batch) // mesh.size,
        cost=cost.of_compiled(compiled, assembled.step, *assembled.in_one_view(batch, resident)),
        forward_flops=cost.flops(parts.method.logits, deployed, assembled.example["image"]),
        traffic=collectives.of(compiled),
        steps=steps,
        steps_per_epoch=per_epoch,
        compile_seconds=seconds,
    )


def report(found: Plan, mesh: Mesh, config: Any, rates: cost.Rates) -> list[str]:
    """Return what a plan says, in lines; `rates` are those of one device."""
    state, device = found.state, mesh.devices.flat[0]
    carried = {name: count_parameters(leaf) for name, leaf in state.state.items()}
    largest = sorted(carried, key=lambda name: -carried[name])[:6]
    listed = ", ".join(f"{name} {carried[name]:,}" for name in largest if carried[name])
    lines = [
        ("trained", f"{count_parameters(state.params):,} parameters, {decimal(bytes_of(state.params))}"),
        ("carried", f"{sum(carried.values()):,} numbers that are not trained" + (f" ({listed})" if listed else "")),
        ("optimizer", f"{config.optimizer.name}, {decimal(bytes_of(state.opt_state))} of state"),
        ("batch", f"{config.train.batch_size // mesh.size} images on each device, {decimal(found.batch)}"),
        ("compiled", f"in {_time(found.compile_seconds)} for {mesh.size} x {device.device_kind}"),
        *_memory(found, device),
        *_step(found, mesh, rates),
    ]
    return [f"{name:<12} {text}".rstrip() for name, text in lines]


def _memory(found: Plan, device: jax.Device) -> list[tuple[str, str]]:
    memory = found.cost.memory
    if memory is None:
        return [("memory", "unknown: this compiler does not tell its plan")]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    arguments = (
        f"train state {decimal(bytes_on_each(found.state))}, training set {decimal(found.resident)},"
        f" batch {decimal(found.batch)}"
    )
    return [
        ("memory", f"{decimal(memory.peak)} on each device" + (f" of its {decimal(limit)}" if limit else "")),
        ("", f"arguments {decimal(memory.arguments)} ({arguments})"),
        ("", f"temporaries {decimal(memory.temporaries)}, new results {decimal(memory.outputs - memory.aliased)}"),
    ]


def _step(found: Plan, mesh: Mesh, rates: cost.Rates) -> list[tuple[str, str]]:
    """Return the lines on the work of a step and the time it takes."""
    flops, moved, seconds = found.cost.flops or 0.0, found.cost.bytes or 0.0, rates.seconds(found.cost, mesh.size)
    by_work, by_bytes = cost.Cost(flops, None, None), cost.Cost(None, moved, None)
    passes = f", {flops / found.forward_flops:.1f} forward passes of the batch" if found.forward_flops else ""
    devices = f"{mesh.size} devices together" if mesh.size > 1 else "the device"
    lines = [
        ("step", f"{flops / 1e9:.4g} GFLOP{passes}; {decimal(int(moved))} read and written, by {devices}"),
        (
            "device",
            f"{jax.devices()[0].device_kind}, measured now: {rates.flops_per_second / 1e9:.4g} GFLOP/s in matrix"
            f" products, {rates.bytes_per_second / 1e9:.4g} GB/s",
        ),
        (
            "step time",
            f"at least {_time(seconds)}: FLOPs {rates.seconds(by_work, mesh.size):.3g} s,"
            f" bytes {rates.seconds(by_bytes, mesh.size):.3g} s",
        ),
        ("length", f"{found.steps:,} steps: at least {_time(found.steps * seconds)}"),
    ]
    if mesh.size > 1:
        listed = ", ".join(f"{decimal(t.bytes)} in {t.operations} {kind}" for kind, t in sorted(found.traffic.items()))
        lines.insert(1, ("collectives", f"{listed or 'none'} on each device in a step, not in the time below"))
    if jax.default_backend() == "cpu":
        lines.append(("", "a loose floor: convolutions and small products on a CPU stay far below that rate"))
    if _stands_in(mesh):
        lines.append(("", f"compiled for {mesh.size} devices of the host: the plan of temporaries is the host's"))
    elif mesh.size > 1 and jax.default_backend() == "cpu":
        lines.append(("", f"the {mesh.size} devices are simulated: the time is that of {mesh.size} such machines"))
    return lines


def bytes_of(tree: Any) -> int:
    """Return the bytes of a tree of arrays or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _stage(title: str, parts: assembly.Parts, workdir: pathlib.Path, mesh: Mesh) -> float:
    """Print what one stage would cost; return its least seconds."""
    if title:
        print(f"\n{title}", flush=True)
    found, rates = plan(parts, mesh), _rates(parts.config.model.dtype)
    session.announce(parts, found.steps_per_epoch, mesh, workdir)
    print("\n" + "\n".join(report(found, mesh, parts.config, rates)), flush=True)
    return found.steps * rates.seconds(found.cost, mesh.size)


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{seconds:.2g} s"


@functools.cache
def _rates(dtype: str) -> cost.Rates:
    return cost.measure_rates(dtype)


def _mesh(devices: int) -> Mesh:
    """Return a mesh of so many devices: those that there are, or else those of the host."""
    if devices <= len(jax.devices()):
        return parallel.make_mesh(devices or None)
    return parallel.make_mesh(devices, jax.devices("cpu"))


def _stands_in(mesh: Mesh) -> bool:
    """Return whether the devices of the mesh are the host's in the place of an accelerator's."""
    return mesh.devices.flat[0].platform != jax.default_backend()
