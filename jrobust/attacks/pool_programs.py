"""The compiled programs of the pool: rows are begun, merged into the slots of a batch, advanced, moved and read.

Everything that decides what is computed is static, everything it is computed on is an argument, and the programs are
functions of this module: a batch of the same size, for whatever images, weights or radius, does not compile again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrobust.attacks.iterative import Iterative, Problem, select_rows
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.threat import Threat

# logits(variables, images) -> float[B, K]; a randomised model takes (variables, images, keys). Static, hence hashable.
Logits = Callable[..., jax.Array]
Sharding = jax.sharding.NamedSharding | None


@jax.jit
def row_keys(key: jax.Array, variants: jax.Array, numbers: jax.Array) -> jax.Array:
    """Return typed keys [B]: `fold_in(fold_in(key, variant), number)` for each row."""
    fold = jax.random.fold_in
    return jax.vmap(lambda variant, number: fold(fold(key, variant), number))(variants, numbers)


class Slots(NamedTuple):
    """The device's view: what is attacked, the attack's carry, and the iteration of each row."""

    images: jax.Array
    labels: jax.Array
    targets: jax.Array
    keys: jax.Array
    carry: Any
    step: jax.Array

    def problem(self, threat: Threat) -> Problem:
        """Return what the attack sees."""
        return Problem(self.images, self.labels, self.targets, self.keys, threat)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def begin(
    logits: Logits,
    attack: Iterative,
    sharding: Sharding,
    variables: Any,
    problem: Problem,
) -> Slots:
    """Return a batch of rows at iteration 0."""
    carry = attack.begin(functools.partial(logits, variables), problem)
    images, labels, targets, keys, _ = problem
    slots = Slots(images, labels, targets, keys, carry, jnp.zeros(labels.shape, jnp.int32))
    # Without weak types, which `advance` would drop: then its second call would compile again.
    return _laid_out(sharding, jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), slots))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def merge(sharding: Sharding, new: jax.Array, fresh: Slots, slots: Slots) -> Slots:
    """Return the slots with the `fresh` rows where `new` bool[B] says so."""
    return _laid_out(sharding, select_rows(new, fresh, slots))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=6)
def advance(
    logits: Logits,
    attack: Iterative,
    segment: int,
    sharding: Sharding,
    variables: Any,
    threat: Threat,
    slots: Slots,
    live: jax.Array,
) -> Slots:
    """Return the slots `segment` iterations later; rows that are not live, or broken, or through, stay as they are."""

    def body(_: Any, slots: Slots) -> Slots:
        active = live & ~slots.carry.success & (slots.step < attack.num_steps)
        step = jnp.minimum(slots.step, attack.num_steps - 1)
        carry = attack.advance(functools.partial(logits, variables), slots.problem(threat), slots.carry, step)
        return slots._replace(carry=select_rows(active, carry, slots.carry), step=slots.step + active)

    # One iteration stays outside a loop: on CPU a convolution's gradient is slow inside one (see jrobust.loops).
    slots = body(0, slots) if segment == 1 else jax.lax.fori_loop(0, segment, body, slots)
    return _laid_out(sharding, slots)


@functools.partial(jax.jit, static_argnums=0)
def finish(attack: Iterative, threat: Threat, slots: Slots) -> AttackResult:
    """Return what was found so far."""
    return attack.finish(slots.problem(threat), slots.carry)


@functools.partial(jax.jit, static_argnums=0)
def gather(sharding: Sharding, slots: Slots, order: jax.Array) -> Slots:
    """Return the rows of `order` int32[n] in a batch of n."""
    return _laid_out(sharding, jax.tree.map(lambda leaf: leaf[order], slots))


def _laid_out(sharding: Sharding, slots: Slots) -> Slots:
    return slots if sharding is None else jax.lax.with_sharding_constraint(slots, sharding)
