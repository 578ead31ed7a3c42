"""Continuous batching of attacks: rows that are done leave a compiled program of fixed size, others take their seats.

A row is one image with one variant of an attack (a target class or a restart). Rows sit in the slots of a batch, each
at an iteration of its own. After every segment of iterations the host reads which rows are broken or through; they
leave, rows of images that need no further attack are dropped, and rows from the queue are begun in the free slots. When
the queue is empty and half of the slots are free, the rest moves to a smaller batch.

Nothing of this changes a row's outcome: a row draws from its own key, and stops at the first iteration that breaks it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jrobust.attacks import pool_programs as programs
from jrobust.attacks.iterative import Iterative
from jrobust.attacks.ledger import Ledger, Plan
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
      under_way: iterations that rows still in their slots have behind them.
    """

    variants: np.ndarray
    positions: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    adv_images: np.ndarray
    begun: int
    iterations: int
    computed: int
    under_way: int


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
        self._first: dict[int, float] = {}  # batch size -> seconds of its first segment, and of its fastest later one
        self._later: dict[int, float] = {}
        self.warm = (0, 0.0)

    def __iter__(self) -> Iterator[Ended]:
        ledger, plan, examples = self._ledger, self._plan, self._examples
        seats = _Seats.free(plan.bucket(ledger.waiting()) if plan.compact else plan.batch_size)
        slots: Any = None
        while True:
            begun, free = 0, np.count_nonzero(~seats.live)
            if ledger.waiting() and (free == seats.size or (plan.compact and 4 * free >= seats.size)):
                slots, begun = self._fill(slots, seats)
            if not seats.live.any():
                return
            if plan.compact and not ledger.waiting() and (size := self._smaller(seats)):
                slots, seats = self._shrink(slots, seats, size)
            slots, success, iterations = self._advance(slots, seats)
            ended = seats.ended(success, self._attack.num_steps, wait_for_all=not plan.compact)
            won, variants, positions = success[ended], seats.variants[ended], seats.positions[ended]
            ledger.settle(variants, positions, won)
            yield Ended(
                variants,
                positions,
                won,
                seats.steps[ended],
                self._found(slots)[ended & success] if won.any() else examples.images[:0],
                begun,
                iterations,
                plan.segment * seats.size,
                int(seats.steps[seats.live & ~ended].sum()),
            )
            seats.live &= ledger.needed(seats.variants, seats.positions)

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
            return whole if sharding is None else jax.device_put(whole, sharding)

        sharding = self._plan.sharding
        columns = (images[positions], labels[positions], targets[positions, variants], variants, numbers[positions])
        rows = programs.Rows(*map(seated, columns))
        fresh = programs.begin(self._logits, self._attack, sharding, self._variables, self._threat, self._key, rows)
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
        if seats.size in self._first:
            self._later[seats.size] = min(seconds, self._later.get(seats.size, seconds))
            self.warm = (self.warm[0] + iterations, self.warm[1] + seconds)
        else:
            self._first[seats.size] = seconds
        return slots, success, iterations

    def _found(self, slots: programs.Slots) -> np.ndarray:
        return np.asarray(programs.finish(self._attack, self._threat, slots).adv_images)

    def _smaller(self, seats: _Seats) -> int:
        """Return the size of the batch to move to, 0 for none."""
        active = int(np.count_nonzero(seats.live))
        size = self._plan.bucket(active)
        if self._plan.shrink == "never" or 2 * active > seats.size or size >= seats.size:
            return 0
        if self._plan.shrink == "always" or size in self._first:
            return size
        if seats.size not in self._later:
            return 0
        segments = (self._attack.num_steps - int(seats.steps[seats.live].min())) / self._plan.segment
        saved = segments * self._later[seats.size] * (1 - size / seats.size)
        compiling = max(self._first[known] - self._later[known] for known in self._later)
        return size if saved > compiling else 0

    def _shrink(self, slots: programs.Slots, seats: _Seats, size: int) -> tuple[programs.Slots, _Seats]:
        active = np.flatnonzero(seats.live)
        order = np.zeros(size, np.int32)
        order[: len(active)] = active
        return programs.gather(self._plan.sharding, slots, order), seats.gathered(order, len(active))


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
