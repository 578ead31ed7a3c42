"""What a compiled program costs by the compiler's count, and what its device can do: the two sides of a roofline.

* FLOPs and bytes are of the program with its loops unrolled, on any backend: the compiler counts the body of a rolled
  loop once. It counts a multiplication and an addition as two, and leaves out multiplications with the zeros of a
  padding. FLOPs are counted as the program is lowered, before the compiler rewrites it. Bytes are what operations of
  the compiled program read and write; what a cache keeps between two of them never goes to memory.
* Rates are the best of some large matrix products, and of some large arrays read and written in place.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jrobust import loops


@dataclasses.dataclass(frozen=True)
class Memory:
    """The compiler's plan of memory on one device, in bytes.

    Attributes:
      arguments, outputs: their arrays.
      aliased: what outputs take over of donated arguments, counted in both.
      temporaries: in the room that they share.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int

    @property
    def peak(self) -> int:
        """What a device must have: arguments, outputs that are none of them, and temporaries."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call costs, on all its devices together, and its memory on one; None where the compiler says nothing."""

    flops: float | None
    bytes: float | None
    memory: Memory | None


@dataclasses.dataclass(frozen=True)
class Rates:
    """What one device can do: FLOP/s of large matrix products of a dtype, and bytes/s of memory."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, cost: Cost, devices: int = 1) -> float:
        """Return the roofline's least time: max(FLOPs / rate, bytes / bandwidth), shared by equal devices."""
        flops, bytes = (cost.flops or 0) / self.flops_per_second, (cost.bytes or 0) / self.bytes_per_second
        return max(flops, bytes) / devices


def of(function: Callable, *arguments: Any) -> Cost:
    """Return what one call on these arguments costs.

    Args:
      function: a function of arrays, or a jitted one, whose layout of arguments and donations the plan then has.
      *arguments: arrays, or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    return of_compiled(jitted.lower(*arguments).compile(), function, *arguments)


def of_compiled(compiled: jax.stages.Compiled, function: Callable, *arguments: Any) -> Cost:
    """Return `of` for a function that has been compiled already; under `pmap`, `function` is the view of all devices.

    Where the backend's loops are rolled, it is compiled once more with them unrolled, for the bytes.
    """
    lowered = _unrolled(function, *arguments)
    flops, analysis = _flops(lowered), compiled.cost_analysis() or {}
    rolled = flops is not None and _rolled(function, *arguments) < 0.999 * flops
    if rolled:
        analysis = lowered.compile().cost_analysis() or {}
    # The compiler counts for one of the devices.
    devices = 1 if rolled else max((s.num_devices for s in jax.tree.leaves(compiled.input_shardings)), default=1)
    moved = float(analysis.get("bytes accessed", 0)) * devices
    return Cost(flops, moved if moved > 0 else None, memory(compiled))


def flops(function: Callable, *arguments: Any) -> float | None:
    """Return the FLOPs of `of`, of all devices; the function is lowered only, not compiled."""
    return _flops(_unrolled(function, *arguments))


def memory(compiled: jax.stages.Compiled) -> Memory | None:
    """Return the plan of a compiled program; None if the backend tells none."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    return Memory(
        arguments=int(plan.argument_size_in_bytes),
        outputs=int(plan.output_size_in_bytes),
        aliased=int(plan.alias_size_in_bytes),
        temporaries=int(plan.temp_size_in_bytes),
    )


def measure_rates(dtype: str) -> Rates:
    """Measure what the first device can do, in about a second; other work on the machine makes it less."""
    product, work = matrix_product(dtype)
    copy, moved = copying()
    return Rates(work / _best_seconds(product, 5), moved / _best_seconds(copy, 5))


def matrix_product(dtype: str, *, least_seconds: float = 0.02, largest: int = 16384) -> tuple[Callable[[], Any], float]:
    """Return a program that multiplies two square matrices of `dtype` on one device, and its FLOPs.

    The side is the smallest power of two, from 512, whose product takes `least_seconds`.
    """
    multiply = jax.jit(jnp.matmul)
    side = 512
    while True:
        left, right = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in (0, 1))

        def product(left: jax.Array = left, right: jax.Array = right) -> jax.Array:
            return multiply(left, right)

        if side >= largest or _best_seconds(product, 2) >= least_seconds:
            return product, 2.0 * side**3
        side *= 2


def copying(*, least_seconds: float = 0.01, largest: int = 2**31) -> tuple[Callable[[], Any], float]:
    """Return a program that reads and writes one large array on one device, and the bytes that it moves.

    The array is of 256 MiB, which no cache holds, or as much larger by powers of two as to take `least_seconds`. It is
    written in place: memory that the system has to hand out first would be measured instead.
    """
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    size = 2**28
    while True:
        array = jnp.zeros(size // 4, jnp.float32)

        def copy() -> jax.Array:
            nonlocal array
            array = step(array)
            return array

        if size >= largest or _best_seconds(copy, 2) >= least_seconds:
            return copy, 2.0 * size
        size *= 2


def _best_seconds(program: Callable[[], Any], repeats: int) -> float:
    """Return the least seconds of some calls, after one that is not counted."""
    jax.block_until_ready(program())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(program())
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _lower(function: Callable, *arguments: Any) -> jax.stages.Lowered:
    """Lower a function for one device."""
    # Of a jitted one the function itself, and as a new one: a traced one would come from the cache in the form in which
    # its loops were first traced.
    plain = getattr(function, "__wrapped__", function) if hasattr(function, "lower") else function
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jax.dtypes.result_type(a)), arguments)
    return jax.jit(lambda *a: plain(*a)).lower(*shapes)


def _unrolled(function: Callable, *arguments: Any) -> jax.stages.Lowered:
    with loops.all_unrolled():
        return _lower(function, *arguments)


def _rolled(function: Callable, *arguments: Any) -> float:
    """Return the FLOPs of a function as its backend has it."""
    return _flops(_lower(function, *arguments)) or 0.0


def _flops(lowered: jax.stages.Lowered) -> float | None:
    analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"]) if analysis and analysis.get("flops", 0) > 0 else None
