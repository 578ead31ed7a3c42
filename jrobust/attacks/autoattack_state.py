"""How far a run of AutoAttack is, image by image; can be saved at any moment and gone on from after a kill."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

from jrobust.attacks.pool import Ended
from jrobust.attacks.versions import Part
from jrobust.errors import InputError

FORMAT = 1
TALLY = ("seconds", "forward", "backward", "iterations", "computed")


class StateError(InputError):
    """A state that cannot be gone on from: damaged, or of another run."""


class PartReport(NamedTuple):
    """What one attack of the sequence did.

    Attributes:
      name: "apgd-ce", "apgd-t", "fab-t", "square", ...
      attacked: images that stood before it.
      broken: how many of them it broke.
      seconds: wall clock, compilation included.
      forward, backward: passes of single images.
      iterations: of all rows under attack, added up; `computed` the same with slots that were empty or done.
    """

    name: str
    attacked: int
    broken: int
    seconds: float
    forward: int
    backward: int
    iterations: int
    computed: int


@dataclasses.dataclass
class State:
    """The state of N images; arrays of numbers and text only.

    Attributes:
      identity: what the run is about: images, labels, keys, ball, attacks. Another run cannot go on from it.
      clean_margin: float32[N], max_{k != y} z_k - z_y of the images; tells another model apart.
      broken_by: str[N], the first part that broke the image, "clean" where it is wrong as it is, "" where it stands.
      margin: float32[N], that of the image as it stands: adversarial where there is one.
      steps: int32[N], iterations that found it.
      adversarial: position -> adversarial image.
      part: number of the part under way; earlier ones are done.
      finished: bool[V, N], rows of that part that have run.
      found: int32[N], the lowest variant of that part that broke the image; V for none.
      tallies: float64[P, len(TALLY)], what each part cost.
    """

    identity: str
    clean_margin: np.ndarray
    broken_by: np.ndarray
    margin: np.ndarray
    steps: np.ndarray
    adversarial: dict[int, np.ndarray]
    part: int
    finished: np.ndarray
    found: np.ndarray
    tallies: np.ndarray

    @classmethod
    def new(cls, identity: str, margin: np.ndarray, correct: np.ndarray, parts: int) -> State:
        """Return the state before the first part."""
        n = len(margin)
        broken_by = np.where(correct, "", "clean").astype("<U16")
        nothing = np.zeros((0, n), bool), np.zeros(n, np.int32), np.zeros((parts, len(TALLY)))
        return cls(identity, margin, broken_by, margin.copy(), np.zeros(n, np.int32), {}, -1, *nothing)

    @property
    def robust(self) -> np.ndarray:
        """bool[N], the images that stand."""
        return self.broken_by == ""

    def begin(self, number: int, part: Part) -> np.ndarray:
        """Begin part `number`, or go on with it; return bool[N], the images that it attacks."""
        if number != self.part:
            self.part = number
            self.finished = np.zeros((part.variants, len(self.margin)), bool)
            self.found = np.full(len(self.margin), part.variants, np.int32)
        return self.robust | (self.broken_by == part.name)

    def enter(self, part: Part, ended: Ended, seconds: float) -> None:
        """Enter what a segment brought and cost; `found` knows it already: the image of the lowest variant is kept."""
        won = ended.success
        rows = zip(ended.variants[won], ended.positions[won], ended.steps[won], ended.adv_images, strict=True)
        for variant, position, steps, adv_image in rows:
            if self.found[position] == variant:
                self.broken_by[position], self.steps[position] = part.name, steps
                self.adversarial[int(position)] = adv_image
        forward, backward = (
            ended.begun * first + ended.iterations * one
            for first, one in zip(part.first_passes, part.passes, strict=True)
        )
        self.tallies[self.part] += [seconds, forward, backward, ended.iterations, ended.computed]

    def reports(self, sequence: tuple[Part, ...]) -> tuple[PartReport, ...]:
        """Return what the parts of the sequence did so far."""
        left = int(np.count_nonzero(self.broken_by != "clean"))
        reports = []
        for part, (seconds, *counts) in zip(sequence, self.tallies.tolist(), strict=True):
            broken = int(np.count_nonzero(self.broken_by == part.name))
            reports.append(PartReport(part.name, left, broken, seconds, *(int(count) for count in counts)))
            left -= broken
        return tuple(reports)

    def save(self, path: str | os.PathLike) -> None:
        """Write the state to a file that holds arrays only; it appears at once or not at all."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        adversarial = fields.pop("adversarial")
        fields["positions"] = np.array(sorted(adversarial), np.int64)
        if adversarial:
            fields["images"] = np.stack([adversarial[i] for i in sorted(adversarial)])
        path = pathlib.Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, format=FORMAT, **fields)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> State:
        """Read a state back.

        Raises:
          StateError: there is no such file, or it holds no state.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                fields: dict[str, Any] = dict(archive)
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            positions = fields.pop("positions").tolist()
            fields["adversarial"] = dict(zip(positions, fields.pop("images", ()), strict=True))
            return cls(**fields | {"identity": str(fields["identity"]), "part": int(fields["part"])})
        except FileNotFoundError as error:
            raise StateError(f"{path} does not exist: expected the state of a run of AutoAttack") from error
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise StateError(f"{path} is not the state of a run of AutoAttack ({error})") from error
