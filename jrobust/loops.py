"""One place that decides how the loops of attacks, path integrals and inner steps are compiled."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")

_all_unrolled = contextvars.ContextVar("_all_unrolled", default=False)


def unrolled(unroll: bool | None = None) -> bool:
    """Return whether loops are unrolled at compile time: `unroll` itself, or by default only on CPU.

    XLA compiles the gradient of a convolution inside a loop on CPU 2 to 30 times slower than the same code outside
    one; on GPU and TPU a rolled loop costs nothing and keeps the program small.
    """
    if _all_unrolled.get():
        return True
    return jax.default_backend() == "cpu" if unroll is None else unroll


@contextlib.contextmanager
def all_unrolled() -> Iterator[None]:
    """Trace every loop of the library unrolled, whatever is asked for: the compiler counts a rolled body once."""
    token = _all_unrolled.set(True)
    try:
        yield
    finally:
        _all_unrolled.reset(token)


def fori_loop(
    lower: int, upper: int, body: Callable[[Any, Carry], Carry], init: Carry, *, unroll: bool | None = None
) -> Carry:
    """Run `body(i, carry) -> carry` for `i` in `range(lower, upper)`, in the form that suits the backend."""
    if upper <= lower:
        return init
    if upper == lower + 1:  # `unroll` leaves a loop of one trip a loop, with all that it costs on CPU
        return body(jnp.int32(lower), init)
    return jax.lax.fori_loop(lower, upper, body, init, unroll=unrolled(unroll))


def after(x: jax.Array, *done: jax.Array, unroll: bool | None = None) -> jax.Array:
    """Return `x`, bit for bit, known to the compiler only when `done` is: terms of a sum come one after the other.

    In a loop whose iterations do not need each other's results, such as a sum, nothing keeps the compiler from holding
    the memory of all of them at once where the loop is unrolled. There each has to ask for its input after the sum so
    far; a rolled loop needs no such order and gets `x` as it is. (`jax.lax.optimization_barrier` is no help: on CPU it
    is dropped before operations are put in order.)

    Args:
      x: the input of an iteration.
      done: floating-point arrays that broadcast with it, such as an element of each array that the iteration before
        has computed. With the examples on an axis of both, devices need nothing of each other.
      unroll: as for the loop.
    """
    if not unrolled(unroll):
        return x
    for value in done:
        never = jnp.isnan(value) & (value > 0)  # which no compiler looks through
        x = jnp.where(never, jnp.zeros((), x.dtype), x)
    return x


def elements(tree: Any) -> list[jax.Array]:
    """Return one element of every array of a tree, for `after`."""
    return [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(tree)]


def scan(
    body: Callable[[Carry, Any], tuple[Carry, Any]], init: Carry, xs: Any, *, unroll: bool | None = None
) -> tuple[Carry, Any]:
    """Run `body(carry, x) -> (carry, y)` over the leading axis of `xs`, in the form that suits the backend."""
    if unrolled(unroll) and len(jax.tree.leaves(xs)[0]) == 1:  # as in `fori_loop`
        carry, y = body(init, jax.tree.map(lambda rows: rows[0], xs))
        return carry, jax.tree.map(lambda row: row[None], y)
    return jax.lax.scan(body, init, xs, unroll=unrolled(unroll))
