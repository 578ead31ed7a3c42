"""Whether many devices train as one does, and what they send each other: every training method, on tiny networks.

    python benchmarks/devices.py                            # eight simulated devices on a CPU, else those there are
    python benchmarks/devices.py --methods=lff,pmg_aft --steps=2
    python benchmarks/devices.py --document=docs/results/devices.md

The methods are those of the configs in `CASES`, on networks that compile in seconds, with attacks of one step and the
optimizer SGD, on random images. (Adam divides a gradient that is zero but for rounding, as that of a key's bias in
attention is, by its own size: no two programs agree on it.) From the same variables a few steps are taken on one device
and on all, under `jit` and under `pmap`.

It prints a table: the largest difference of a parameter over the largest parameter, in float32; the same of how far the
parameters have moved from their start; and the collective operations of the compiled step on all devices
(jrobust/training/collectives.py): how many, the bytes of their results on one device, over the bytes of the parameters,
and their kinds. Equal is a difference of at most 1e-5. The sign of a gradient that is zero but for rounding moves a
pixel of an attacked image by two steps of the attack, so a row that is above is run once more in float64 and is equal
if it is within 1e-10 there: then it is rounding and nothing else. Seconds are not measured: simulated devices share the
cores of one machine. The same is written as JSON lines, one a row, and as a document; the status is 1 if a row is not
equal.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import measure, options, roofline, tables, training
from jrobust import methods
from jrobust.data.pipeline import make_prepare
from jrobust.errors import InputError, unknown
from jrobust.training import collectives, parallel, program
from jrobust.training import state as train_states

LIMITS = {"float32": 1e-5, "float64": 1e-10}
DEVICES = 8  # simulated ones
TOKENS = 6  # of a caption


class Case(NamedTuple):
    """A method.

    Attributes:
      config: as behind --config of launch/run.py.
      method: what is changed of its section `method`.
    """

    config: str
    method: Mapping[str, Any] = {}


_MASKED = "configs/masked_images_shapes.py:method=masked"
CASES = {
    "standard": Case("configs/art_digits.py:variant=natural"),
    "adversarial": Case("configs/fsr_digits.py:method=at"),
    "trades": Case("configs/fsr_digits.py:method=trades"),
    "mart": Case("configs/fsr_digits.py:method=mart"),
    "adversarial+fsr": Case("configs/fsr_digits.py:method=at,fsr"),
    "art": Case("configs/art_digits.py:variant=art"),
    "erm+biasadv": Case("configs/biasadv_colored_digits.py:method=erm,biasadv"),
    "identification": Case("configs/art_digits.py:variant=natural", {"name": "identification"}),
    "jtt+biasadv": Case("configs/biasadv_colored_digits.py:method=jtt,biasadv"),
    "lff": Case("configs/biasadv_colored_digits.py:method=lff"),
    "lff+biasadv": Case("configs/biasadv_colored_digits.py:method=lff,biasadv"),
    "contrastive": Case("configs/clip_shapes.py"),
    "pmg_aft": Case("configs/pmg_aft_shapes.py:method=pmg_aft"),
    "linear_probe": Case(_MASKED, {"name": "linear_probe"}),
    "masked_images-none": Case(_MASKED, {"refilling": "none"}),
    "masked_images-multi": Case(_MASKED, {"refilling": "multi", "groups": 2}),  # on eight devices, of four neighbours
    "masked_images-single": Case(_MASKED, {"refilling": "single"}),
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Compare, print and write; return the rows."""
    parser = options.parser(__doc__ or "", "not here: see --methods")
    parser.add_argument("--methods", default="", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument(
        "--steps", type=int, default=2, help="of training; default 2, for a student begins as its teacher"
    )
    parser.add_argument("--document", type=pathlib.Path, help="the table in Markdown, besides the JSON lines")
    parsed = parser.parse_args(arguments)
    options.simulate_devices(DEVICES)
    parsed.dtype, parsed.batch = "float32", parsed.batch or 2 * jax.device_count()
    chosen = options.resolve(parsed, local_model="")
    chosen.names = tuple(filter(None, chosen.methods.split(","))) or tuple(CASES)
    for name in chosen.names:
        if name not in CASES:
            raise unknown("--methods", name, CASES)
    parallel.check_divisible(chosen.batch, parallel.make_mesh())
    title = f"steps on {jax.device_count()} devices beside one"
    rows = training.conclude(chosen, rows_of, notes, "devices", title)
    if chosen.document:
        rows_file = measure.results_file(rows, "devices", chosen.output)
        chosen.document.parent.mkdir(parents=True, exist_ok=True)
        chosen.document.write_text(tables.markdown([rows_file], "Many devices beside one"), encoding="utf-8")
    return rows


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Compare the methods, one after the other."""
    rows = []
    for name in chosen.names:
        console.print(name, highlight=False)
        rows += compare(name, dtype, chosen.batch, chosen.steps)
    return rows


def compare(name: str, dtype: str, batch: int, steps: int) -> list[dict[str, Any]]:
    """Return the rows of a method: all devices beside one, in each of its modes."""
    rows = []
    one = functools.cache(lambda kind: trained(name, kind, batch, steps, "jit", 1))
    for mode in parallel.MODES:
        all_of_them = trained(name, dtype, batch, steps, mode, jax.device_count())
        found = {"difference": distance(one(dtype).params, all_of_them.params)}
        equal = found["difference"] <= LIMITS[dtype]
        if not equal:
            in_float64 = trained(name, "float64", batch, steps, mode, jax.device_count())
            found["difference_float64"] = distance(one("float64").params, in_float64.params)
            equal = found["difference_float64"] <= LIMITS["float64"]
        sent = sum(traffic.bytes for traffic in all_of_them.traffic.values())
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(all_of_them.params))
        rows.append(
            {"name": f"{name} {mode}", "method": name, "mode": mode, "dtype": dtype, "batch": batch, "steps": steps}
            | {key: value if np.isfinite(value) else None for key, value in found.items()}  # JSON has no infinity
            | {
                "moved": distance(one(dtype).start, one(dtype).params),
                "equal": equal,
                "collectives": sum(traffic.operations for traffic in all_of_them.traffic.values()),
                "bytes_sent": sent,
                "sent_over_parameters": sent / size,
                "traffic": {kind: traffic._asdict() for kind, traffic in all_of_them.traffic.items()},
                "kinds": ", ".join(f"{traffic.operations} {kind}" for kind, traffic in all_of_them.traffic.items()),
            }
            | measure.machine()
        )
    return rows


class Trained(NamedTuple):
    """Parameters on the host before and after some steps, and what the devices send each other in a step."""

    start: Any
    params: Any
    traffic: dict[str, collectives.Traffic]


def trained(name: str, dtype: str, batch: int, steps: int, mode: str, devices: int) -> Trained:
    """Take steps on the first so many devices."""
    with jax.enable_x64(dtype == "float64"):
        config = config_of(name, dtype)
        config.train.parallelism = mode
        network, shape = roofline.network_of(config)
        method = method_of(config, network, batch * steps)
        resident = examples(batch * steps, shape, network.num_classes)
        positions = [{"index": np.arange(i * batch, (i + 1) * batch, dtype=np.int32)} for i in range(steps)]
        found = program.assemble(
            method,
            config,
            positions[0],
            resident,
            prepare=make_prepare(config.data.augment),
            mesh=parallel.make_mesh(devices),
            steps_per_epoch=100,
            total_steps=1000,
        )
        step = found.parallel
        variables = jax.tree.map(jnp.copy, initial(name, dtype, batch * steps))
        start = jax.tree.map(np.array, variables.params)
        state = jax.device_put(train_states.create(variables, found.optimizer.tx), step.layout)
        placed, key = step.replicate(resident), step.replicate(jax.random.key(1))
        compiled = step.compile(state, step.shard(positions[0]), placed, key)
        for position in positions:
            state, _ = compiled(state, step.shard(position), placed, key)
        return Trained(start, jax.tree.map(np.array, state.params), collectives.of(compiled))


@functools.cache
def initial(name: str, dtype: str, count: int) -> Any:
    """Return what a method starts from, whatever the devices."""
    config = config_of(name, dtype)
    return training.initial(method_of(config, roofline.network_of(config)[0], count))


def method_of(config: Any, network: Any, count: int) -> Any:
    """Return the method of a config for a training set of so many images."""
    return methods.build(config.method, network, num_examples=count, class_tokens=(((1,),),))


def config_of(name: str, dtype: str) -> Any:
    """Return the config of a method on a tiny network."""
    config = roofline.read(CASES[name].config, (), local=True)
    if "name" in CASES[name].method:
        config.method = {}
    config.method.update(CASES[name].method)
    for section in (config.method, config.method.get("biasadv", {})):
        if "num_steps" in section:
            section.num_steps = 1
    config.model.dtype = dtype
    if "sizes" in config.model:
        config.model.sizes.update({"image_layers": 1, "text_layers": 1, "image_width": 64, "image_heads": 1})
    else:
        config.model.width = 4
    config.optimizer.update({"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0})
    config.optimizer.update({"schedule": "steps", "drop_epochs": (), "drop_factors": (), "clip_norm": 0.0})
    return config


def examples(count: int, shape: Sequence[int], num_classes: int) -> dict[str, np.ndarray]:
    """Return random images with labels and captions."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, *shape), np.uint8),
        "label": rng.integers(0, num_classes, count, np.int32),
        "tokens": rng.integers(1, TOKENS, (count, 2, TOKENS), np.int32),
    }


def distance(one: Any, other: Any) -> float:
    """Return the largest difference of two trees over the largest number of the first; infinity if any is NaN."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    largest = np.max([np.max(np.abs(a)) for a, _ in pairs])
    found = np.max([np.max(np.abs(np.asarray(a, np.float64) - b)) for a, b in pairs])  # NaN if any is, other than max()
    return float(found / largest) if np.isfinite(found) else float("inf")


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines below the table."""
    above = [row["name"] for row in rows if row["equal"] and "difference_float64" in row]
    unequal = [row["name"] for row in rows if not row["equal"]]
    lines = [f"{len(rows) - len(above) - len(unequal)} of {len(rows)} are within {LIMITS['float32']:.0e} in float32"]
    if above:
        lines.append(f"above in float32 and within {LIMITS['float64']:.0e} in float64: {', '.join(above)}")
    lines += [f"{row['name']}: {row['kinds']}" for row in rows if set(row["traffic"]) - {"all-reduce"}]
    return [*lines, f"NOT EQUAL: {', '.join(unequal)}"] if unequal else lines


if __name__ == "__main__":
    try:
        measured = main()
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(row["equal"] for row in measured) else 1)
