"""Continuous batching of attacks: rows that are done leave a compiled program of fixed size, others take their seats.

A row is one image with one variant of an attack (a target class or a restart). Rows sit in the slots of a batch, each
at an iteration of its own. After every segment of iterations the host reads which rows are broken or through; they
leave, rows of images that need no further attack are dropped, and rows from the queue are begun in the free slots. When
the queue is empty and half of the slots are free, the rest moves to a smaller batch.

Nothing of this changes a row's outcome: a row draws from its own key, and stops at the first iteration that breaks it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jrobust.attacks import pool_programs as programs
from jrobust.attacks.iterative import Iterative, Problem
from jrobust.attacks.ledger import Costs, Ledger, Plan
from jrobust.attacks.threat import Threat


class Examples(NamedTuple):
    """N images on the host, and what else their rows need.

    Attributes:
      images: float[N, H, W, C].
      labels: int32[N].
      targets: int32[N, V], the class that variant v aims at; the labels themselves for untargeted attacks.
      numbers: int32[N], what their keys are folded with.
    """

    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    numbers: np.ndarray


class Ended(NamedTuple):
    """What one segment brought: the rows that ended in it, and what it cost.

    Attributes:
      variants, positions: int32[n], the rows.
      success: bool[n].
      steps: int32[n], iterations they took.
      adv_images: float[m, H, W, C] of the m successful ones.
      begun: rows that were begun before the segment.
      iterations: iterations of all rows under attack, added up.
      computed: iterations times slots: the same with what was computed in vain.
      left: iterations that rows still in their slots have before them at most.
    """

    variants: np.ndarray
    positions: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    adv_images: np.ndarray
    begun: int
    iterations: int
    computed: int
    left: int


class Pool:
    """Runs the rows of a ledger; iterate over it once.

    Args:
      attack: the attack.
      logits: the classifier, `logits(variables, images)`; hashable.
      variables: its first argument, a pytree of arrays; on all devices of the plan's mesh.
      examples: the images.
      threat: the ball.
      key: the row of variant v and image i draws from `fold_in(fold_in(key, v), numbers[i])`.
      ledger: the rows; what has ended is entered there before it is yielded.
      plan: the layout.

    Attributes:
      warm: iterations of all rows, and the seconds they took, without each program's first call, which may compile.
    """

    def __init__(
        self,
        attack: Iterative,
        logits: programs.Logits,
        variables: Any,
        examples: Examples,
        threat: Threat,
        key: jax.Array,
        ledger: Ledger,
        plan: Plan,
    ):
        self._attack, self._logits, self._variables = attack, logits, variables
        self._examples, self._threat, self._key = examples, threat, key
        self._ledger, self._plan = ledger, plan
        program: Any = (logits, attack, plan.segment, plan.sharding)
        self._costs = _costs(*program, examples.images.shape[1:], str(examples.images.dtype))
        self.warm = (0, 0.0)

    def __iter__(self) -> Iterator[Ended]:
        ledger, plan, total = self._ledger, self._plan, self._attack.num_steps
        waiting = ledger.waiting()
        seats = _Seats.free(self._size(plan.batch_size, waiting, total))
        slots: Any = None
        while True:
            begun, free = 0, np.count_nonzero(~seats.live)
            if ledger.waiting() and (free == seats.size or (plan.compact and 4 * free >= seats.size)):
                slots, begun = self._fill(slots, seats)
            if not seats.live.any():
                return
            if not ledger.waiting() and 2 * np.count_nonzero(seats.live) <= seats.size:
                slots, seats = self._shrink(slots, seats)
            slots, success, iterations = self._advance(slots, seats)
            ended = seats.ended(success, total, wait_for_all=not plan.compact)
            won, variants, positions = success[ended], seats.variants[ended], seats.positions[ended]
            ledger.settle(variants, positions, won)
            seats.live &= ledger.needed(seats.variants, seats.positions)
            yield Ended(
                variants,
                positions,
                won,
                seats.steps[ended],
                self._found(slots)[ended & success] if won.any() else self._examples.images[:0],
                begun,
                iterations,
                plan.segment * seats.size,
                int((total - seats.steps[seats.live]).sum()),
            )

    def _fill(self, slots: programs.Slots | None, seats: _Seats) -> tuple[programs.Slots, int]:
        """Begin rows of the queue in the free slots; return their number too."""
        free = np.flatnonzero(~seats.live)
        variants, positions = self._ledger.take(len(free))
        taken = free[: len(variants)]
        seats.seat(taken, variants, positions)
        new = np.zeros(seats.size, bool)
        new[taken] = True
        images, labels, targets, numbers = self._examples

        def seated(values: np.ndarray) -> Any:
            whole = np.zeros((seats.size, *values.shape[1:]), values.dtype)
            whole[taken] = values
            return whole

        sharding = self._plan.sharding
        keys = programs.row_keys(self._key, seated(variants), seated(numbers[positions]))
        columns = (images[positions], labels[positions], targets[positions, variants])
        rows: Any = (*map(seated, columns), keys)
        images, labels, targets, keys = rows if sharding is None else jax.device_put(rows, sharding)
        problem = Problem(images, labels, targets, keys, self._threat)
        fresh = programs.begin(self._logits, self._attack, sharding, self._variables, problem)
        return (fresh if slots is None else programs.merge(sharding, new, fresh, slots)), len(variants)

    def _advance(self, slots: programs.Slots, seats: _Seats) -> tuple[programs.Slots, np.ndarray, int]:
        """Return the slots after a segment, which rows are broken, and iterations made."""
        begin, plan = time.perf_counter(), self._plan
        arguments = (self._variables, self._threat, slots, seats.live)
        slots = programs.advance(self._logits, self._attack, plan.segment, plan.sharding, *arguments)
        success, steps = jax.device_get((slots.carry.success, slots.step))
        seconds = time.perf_counter() - begin
        iterations = int((steps - seats.steps)[seats.live].sum())
        seats.steps, seats.age = np.array(steps), seats.age + plan.segment
        if self._costs.measured(seats.size, seconds):
            self.warm = (self.warm[0] + iterations, self.warm[1] + seconds)
        return slots, success, iterations

    def _found(self, slots: programs.Slots) -> np.ndarray:
        return np.asarray(programs.finish(self._attack, self._threat, slots).adv_images)

    def _shrink(self, slots: programs.Slots, seats: _Seats) -> tuple[programs.Slots, _Seats]:
        """Move to a smaller batch if that is worth it."""
        active = np.flatnonzero(seats.live)
        left = self._attack.num_steps - int(seats.steps[active].min())
        size = self._size(seats.size, len(active), left)
        if size >= seats.size:
            return slots, seats
        order = np.zeros(size, np.int32)
        order[: len(active)] = active
        return programs.gather(self._plan.sharding, slots, order), seats.gathered(order, len(active))

    def _size(self, size: int, rows: int, iterations: int) -> int:
        """Return the size of the batch to go on with, `size` at most, for so many rows and iterations."""
        if not self._plan.compact:
            return size
        natural = self._plan.bucket(rows)
        if natural >= size or self._plan.shrink == "never":
            return size
        if self._plan.shrink == "always":
            return natural
        return self._costs.best(natural, most=size, segments=iterations / self._plan.segment)


@functools.lru_cache(maxsize=256)
def _costs(*program: Any) -> Costs:
    """Return what is known of a program; a later run goes on with it, as its programs are compiled already."""
    del program
    return Costs()


@dataclasses.dataclass
class _Seats:
    """The host's view of the slots: whose row sits where, and how far it is."""

    variants: np.ndarray
    positions: np.ndarray
    live: np.ndarray
    steps: np.ndarray
    age: int = 0

    @classmethod
    def free(cls, size: int) -> _Seats:
        integers = (np.zeros(size, np.int32) for _ in range(3))
        return cls(next(integers), next(integers), np.zeros(size, bool), next(integers))

    @property
    def size(self) -> int:
        return len(self.live)

    def seat(self, slots: np.ndarray, variants: np.ndarray, positions: np.ndarray) -> None:
        self.variants[slots], self.positions[slots] = variants, positions
        self.live[slots], self.steps[slots], self.age = True, 0, 0

    def ended(self, success: np.ndarray, total: int, *, wait_for_all: bool) -> np.ndarray:
        return self.live & (np.array(self.age >= total) if wait_for_all else success | (self.steps >= total))

    def gathered(self, order: np.ndarray, active: int) -> _Seats:
        live = np.arange(len(order)) < active
        return _Seats(self.variants[order], self.positions[order], live, self.steps[order], self.age)
