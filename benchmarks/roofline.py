"""How near each hot path is to what its device can do: work and bytes, the time they take at least, and the time taken.

    python benchmarks/roofline.py                                                    # all paths, at full size
    python benchmarks/roofline.py --paths=pgd,apgd --dtype=bfloat16 --batch=128
    python benchmarks/roofline.py --config=configs/art_cifar10.py:variant=art [--batch=64] [--config.model.width=4]
    python benchmarks/roofline.py --local                                            # tiny, for two cores

The paths: the training steps natural, pgd, art, fsr, biasadv (LfF + BiasAdv), pmg_aft and masked_images of their
configs, and on the network of configs/art_cifar10.py ig, one chunk of integrated gradients; ifia, two iterates of the
attack on them; apgd, the start and one iteration of AutoAttack's first attack. --config is the training step of any
config. Steps are as `launch/run.py` compiles them, over all devices, the others on one; all on random images of the
data set's shape, which the catalogue knows: no data and no weights are read.

It prints a table: images/s, median and quartiles of the seconds of one call, FLOPs counted by hand
(benchmarks/passes.py) and by the compiler, the bytes that the operations of the compiled program read and write, their
ratio, the floor max(FLOPs / rate, bytes / bandwidth) and which of the two it is, the share of the floor in the time
taken, and that of the matrix rate. Rate and bandwidth are those of jrobust/training/cost.py, the best of as many calls,
in turns with the program. What a cache keeps between two operations is counted and never goes to memory, so a program
that is bound by bytes may take less than its floor. The same is written as JSON lines, one a row, and drawn beside
them as PNG where matplotlib is installed.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import measure, options, passes, training
from benchmarks.kernels import CALLS
from jrobust import methods
from jrobust.data import output_shape
from jrobust.data.catalogue import DATA_SETS
from jrobust.errors import InputError, unknown
from jrobust.models import zoo
from jrobust.models.network import Network
from jrobust.reporting import roofline as picture
from jrobust.training import cost

STEPS = {
    "natural": "configs/art_cifar10.py:variant=natural",
    "pgd": "configs/art_cifar10.py:variant=pgd",
    "art": "configs/art_cifar10.py:variant=art",
    "fsr": "configs/fsr_cifar10.py:method=at,fsr",
    "biasadv": "configs/biasadv_cifar10c.py:method=lff,biasadv",
    "pmg_aft": "configs/pmg_aft_tiny_imagenet.py:method=pmg_aft",
    "masked_images": "configs/masked_images_imagenet.py:method=masked",
}


class Path(NamedTuple):
    """One hot path.

    Attributes:
      program: compiled.
      model, batch: its network in words, and images.
      network: that its forward passes go through.
      passes: its forward passes' worth, counted by hand; None if nobody has counted it.
      devices: over which it is spread.
    """

    program: training.Program
    model: str
    batch: int
    network: Any  # hashable
    passes: float | None
    devices: int


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, write and draw; return the rows."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    rest, overrides = _launch().split_overrides(line)
    parser = options.parser(__doc__ or "", "not here: see --config")
    parser.add_argument("--paths", default="", help=f"of {', '.join((*STEPS, *CALLS))}; default all")
    parser.add_argument("--config", default="", help="the training step of this config, in the place of the paths")
    parsed = parser.parse_args(rest)
    if parsed.model or (parsed.config and parsed.paths) or (overrides and not parsed.config):
        raise InputError("expected --paths=..., or --config=FILE with --config.KEY=VALUE; the model is in the config")
    batch = parsed.batch
    chosen = options.resolve(parsed, local_model="")
    chosen.names = tuple(filter(None, chosen.paths.split(","))) or (*STEPS, *CALLS)
    for name in chosen.names:
        if name not in (*STEPS, *CALLS):
            raise unknown("--paths", name, (*STEPS, *CALLS))
    if chosen.config:
        chosen.names, chosen.overrides = (chosen.config.rpartition("/")[2],), overrides
        chosen.batch = batch or read(chosen.config, overrides, chosen.local).train.batch_size
    title = f"roofline of {chosen.config}" if chosen.config else "rooflines of the hot paths"
    rows = training.conclude(chosen, rows_of, lambda rows: [], "roofline", title)
    training.draw(picture.draw, rows, "roofline", chosen.output)
    return rows


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Measure the paths in one type, one after the other, each in turns with the device's own rates."""
    product, work = cost.matrix_product(dtype)
    copy, moved = cost.copying()
    rows = []
    for name in chosen.names:
        console.print(f"{name} in {dtype}: compiling", highlight=False)
        path = path_of(name, chosen, dtype)
        console.print(f"{name} in {dtype}: measuring", highlight=False)
        timings = measure.in_turns({"product": product, "copy": copy, name: path.program.run}, chosen.repeats)
        best = {name: min(timing.seconds) for name, timing in timings.items()}
        rates = cost.Rates(work / best["product"], moved / best["copy"])
        row = {"name": name, "program": name, "model": path.model, "dtype": dtype, "batch": path.batch}
        row |= {"steps": path.program.steps} | timings[name].row() | path.program.fields
        rows.append(row | reached(row, path, rates) | measure.machine())
    return rows


def reached(row: dict[str, Any], path: Path, rates: cost.Rates) -> dict[str, Any]:
    """Return what a row says of the floor, and how near its seconds are to that."""
    assert path.program.cost is not None
    counted, forward = path.program.cost(), training.forward_flops(path.network, path.batch)
    by_hand = passes.forward_flops(path.network)
    each = forward if by_hand is None else by_hand * path.batch
    floor = rates.seconds(counted, path.devices)
    by_work = rates.seconds(cost.Cost(counted.flops, None, None), path.devices)
    found = measure.rates(
        row,
        matrix_rate=rates.flops_per_second * path.devices,
        forward_flops=forward,
        counted=path.passes,
    )
    return found | {
        "flops_by_hand": None if path.passes is None or each is None else path.passes * each,
        "bytes": counted.bytes,
        "intensity": counted.flops / counted.bytes if counted.flops and counted.bytes else None,
        "bytes_per_second": rates.bytes_per_second * path.devices,
        "floor_seconds": floor,
        "bound_by": "FLOPs" if by_work >= floor else "bytes",
        "reached": floor / row["seconds_median"],
    }


def path_of(name: str, chosen: Any, dtype: str) -> Path:
    """Return a path, compiled."""
    if name in CALLS:
        return _call(CALLS[name], chosen.local, dtype, chosen.batch)
    argument = chosen.config or STEPS[name]
    config = read(argument, getattr(chosen, "overrides", ()), chosen.local)
    config.model.dtype = dtype
    network, shape = network_of(config)
    examples = DATA_SETS[config.data.name].counts.get("train", 50_000)
    program = training.compile_step(
        config,
        methods.build(config.method, network, num_examples=examples, microbatches=config.train.microbatches),
        chosen.batch,
        shape=shape,
        num_classes=network.num_classes,
    )
    return Path(program, model_name(config), chosen.batch, network, step_passes(config, network), jax.device_count())


def read(argument: str, overrides: Sequence[str], local: bool) -> Any:
    """Return a config that may be changed, at the size of a laptop if `local`."""
    path, _, words = argument.partition(":")
    if local and "runlocal" not in words.split(","):
        argument = f"{path}:{','.join(filter(None, (words, 'runlocal')))}"
    return _launch().read_config(argument, overrides).copy_and_resolve_references().unlock()


def network_of(config: Any) -> tuple[Network, tuple[int, int, int]]:
    """Return the network of a config and the shape of the images of its data set, as the catalogue describes them.

    Raises:
      InputError: the catalogue does not know the data set or the size of its images.
    """
    section = config.data
    if section.name not in DATA_SETS:
        raise unknown("data set", section.name, DATA_SETS)
    entry = DATA_SETS[section.name]
    height, width, channels = entry.image_shape
    side = section.image_size or section.options.get("resize", 0)
    shape = (side or height, side or width, channels)
    if not all(shape):
        raise InputError(f"images of {section.name} are of many sizes: set --config.data.image_size")
    classes = entry.num_classes
    if entry.classes_of is not None:
        classes = entry.classes_of(**{**entry.options, **section.options})
    model = config.model.to_dict()
    for name, value in (("mean", 0.5), ("std", 0.25)):  # () would be measured on the data
        model[name] = model.get(name) or (value,) * channels
    return zoo.build(model, num_classes=classes, input_shape=output_shape(shape, section.augment)), shape


def step_passes(config: Any, network: Network) -> float | None:
    """Return the forward passes' worth of the training step of a config."""
    sizes = getattr(getattr(network, "clip", None), "sizes", None)
    tokens = 1 + (sizes.image_size // sizes.patch) ** 2 if sizes is not None and sizes.patch else 0
    return passes.of_step(config.method, tokens=tokens, prompts=getattr(network, "prompts", None) is not None)


def model_name(config: Any) -> str:
    """Return the network of a config in words.

    >>> model_name(read(STEPS["art"], (), False)), model_name(read(STEPS["pmg_aft"], (), False))
    ('wrn-28-10', 'ViT-B/32')
    """
    section = config.model
    if section.name == "wide_resnet":
        return f"wrn-{section.depth}-{section.width}"
    return section.get("architecture") or ("small clip" if section.name == "clip" else section.name)


def _call(make: Callable[..., tuple[Callable, int, float]], local: bool, dtype: str, batch: int) -> Path:
    """Return a path that is no training step: a function of the network, images and labels, on one device."""
    config = read(STEPS["natural"], (), local)
    config.model.dtype = dtype
    network, _ = network_of(config)
    params, state = jax.jit(network.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((batch, *network.input_shape), np.float32))
    labels = jnp.asarray(rng.integers(0, network.num_classes, batch, np.int32))
    function, steps, counted = make(network, config.evaluation.attribution)
    program = training.compile_call(function, params, state, images, labels, steps=steps)
    return Path(program, model_name(config), batch, network, counted, 1)


def _launch() -> Any:
    """Return what reads configs for the commands."""
    sys.path.insert(0, str(measure.ROOT / "launch"))
    import command

    return command


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
