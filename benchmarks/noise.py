"""How much of an attack's time goes into random numbers: the draws alone, beside the computation that uses them.

    python benchmarks/noise.py [--batch=16] [--repeats=7]
    python benchmarks/noise.py --local                        # fewer images, under two minutes on two cores

The programs: PGD-10 on WRN-16-4 with a random start, whose draws are one number a pixel and channel; a gradient in the
images of ResNet-18 with an FSR module, which is a step of its attack, whose draws are two numbers an element of the
mask, in the module's forward pass; an iteration of Square on WRN-16-4, a forward pass, whose draws are eight numbers an
image. Each example draws from a key of its own, made of a key and the example's number (threefry). Both are timed in
turns; the share is that of the CPU seconds of all cores. What is fused into the rest costs less than alone.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import measure, options, roofline, training
from jrobust import keys as per_example_keys
from jrobust.attacks import cross_entropy, linf, pgd, untargeted
from jrobust.attacks.iterative import Problem
from jrobust.attacks.square import Square
from jrobust.errors import InputError
from jrobust.models import fsr

EPS, STEP_SIZE = 8 / 255, 2 / 255
MASKS = (4, 4, 512)  # of the module after the last block


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "", "not read")
    parsed = parser.parse_args(arguments)
    parsed.dtype = "float32"
    chosen = options.resolve(parsed, local_model="wrn-16-4")
    return training.conclude(chosen, rows_of, notes, "noise", "random numbers in attacks")


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Time every program and its draws in turns."""
    rows = []
    for name, make in PROGRAMS.items():
        console.print(f"{name}: compiling", highlight=False)
        model, whole, draws = make(chosen.batch, dtype)
        timings = measure.in_turns({name: whole, f"{name}, draws": draws}, chosen.repeats)
        share = timings[f"{name}, draws"].row()["cpu_seconds_median"] / timings[name].row()["cpu_seconds_median"]
        for part, timing in timings.items():
            row = {"name": part, "model": model, "dtype": dtype, "batch": chosen.batch} | timing.row()
            rows.append(row | {"share_of_draws": share} | measure.machine())
    return rows


def _inputs(network: Any, batch: int) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array]:
    params, state = jax.jit(network.init)(jax.random.key(0, impl="rbg"))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((batch, *network.input_shape), np.float32))
    labels = jnp.asarray(rng.integers(0, network.num_classes, batch, np.int32))
    return params, state, images, labels, jnp.arange(batch)


def _timed(function: Callable, *arguments: Any) -> Callable[[], Any]:
    compiled, _ = measure.compile_ahead(jax.jit(function), *arguments)
    return lambda: compiled(*arguments)


def _pgd(batch: int, dtype: str) -> tuple[str, Callable, Callable]:
    network, threat = options.classifier("wrn-16-4", dtype), linf(EPS)
    params, state, images, labels, index = _inputs(network, batch)

    def attack(params: Any, state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        objective = untargeted(lambda x: network.apply(params, state, x).logits, labels, loss=cross_entropy)
        return pgd(objective, images, key, threat=threat, step_size=STEP_SIZE, num_steps=10).adv_images

    def draws(key: jax.Array, images: jax.Array, index: jax.Array) -> jax.Array:
        return jax.vmap(threat.random_start)(per_example_keys.per_example(key, index), images)

    key = jax.random.key(1)
    return "wrn-16-4", _timed(attack, params, state, images, labels, key), _timed(draws, key, images, index)


def _fsr(batch: int, dtype: str) -> tuple[str, Callable, Callable]:
    config = roofline.read(roofline.STEPS["fsr"], (), False)
    config.model.dtype = dtype
    network, _ = roofline.network_of(config)
    params, state, images, labels, index = _inputs(network, batch)

    def gradient(params: Any, state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        own = per_example_keys.per_example(key, index)

        def loss(x: jax.Array) -> jax.Array:
            logits = network.apply(params, state, x, train=True, keys=own, mask_mode="sample").logits
            return jnp.sum(cross_entropy(logits, labels))

        return jax.grad(loss)(images)

    def draws(key: jax.Array, index: jax.Array) -> jax.Array:
        own = per_example_keys.per_example(key, index)
        return fsr.gumbel_noise(*(fsr.uniforms(own, i, MASKS, jnp.float32) for i in (0, 1)))

    key = jax.random.key(1)
    return "resnet18, FSR", _timed(gradient, params, state, images, labels, key), _timed(draws, key, index)


def _square(batch: int, dtype: str) -> tuple[str, Callable, Callable]:
    network, attack = options.classifier("wrn-16-4", dtype), Square("linf")
    params, state, images, labels, index = _inputs(network, batch)
    steps = jnp.full(batch, 10, jnp.int32)

    def problem(images: jax.Array, labels: jax.Array, key: jax.Array) -> Problem:
        return Problem(images, labels, labels, per_example_keys.per_example(key, index), linf(EPS))

    def iteration(params: Any, state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        rows = problem(images, labels, key)
        points = attack.propose(rows, images, attack.draw(rows, steps))
        return network.apply(params, state, points).logits

    def draws(images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        return attack.draw(problem(images, labels, key), steps)

    key = jax.random.key(1)
    return "wrn-16-4", _timed(iteration, params, state, images, labels, key), _timed(draws, images, labels, key)


PROGRAMS = {"PGD-10": _pgd, "a step of FSR": _fsr, "an iteration of Square": _square}


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each program."""
    return [f"{row['name']}: {100 * row['share_of_draws']:.2f} % of the CPU seconds are draws" for row in rows[::2]]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
