"""The verdicts of suite `sanity`, from how many images of its sample are right under which attack."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from jrobust.evaluation.record import Record

# The checks of Kim et al. 2023 (FSR), supplementary, section 3, in words.
WORDS = {
    "white_box_beats_black_box": "white-box attacks beat black-box ones",
    "more_steps_never_help": "more steps never help the defender",
    "larger_eps_never_helps": "a larger radius never helps the defender",
    "unbounded_reaches_zero": "an unbounded attack leaves nothing",
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One verdict.

    Attributes:
      name: a key of `WORDS`.
      passed: the verdict; None where there was nothing to compare.
      found: what it rests on, a sentence.
    """

    name: str
    passed: bool | None
    found: str

    @property
    def result(self) -> str:
        """Return "passed", "failed" or "not checked"."""
        return {True: "passed", False: "failed", None: "not checked"}[self.passed]


def allowed_rise(tolerance: float, examples: int) -> int:
    """Return how many images an accuracy may rise by: the share `tolerance` of them, rounded down, but at least one.

    >>> [allowed_rise(0.02, n) for n in (16, 64, 1000)], allowed_rise(0.0, 1000)
    ([1, 1, 20], 0)
    """
    return max(1, math.floor(tolerance * examples)) if tolerance > 0 else 0


def never_rises(name: str, points: Sequence[tuple[str, int]], allowed: int) -> Check:
    """Check that no point of a curve lies above an EARLIER one (not only its neighbour) by more than `allowed` images.

    Args:
      name: of the check.
      points: (label, images that are right there), in increasing strength of the attack.
      allowed: images.
    """
    if len(points) < 2:
        return Check(name, None, "fewer than two points")
    rises = [(after[1] - before[1], before, after) for before, after in itertools.combinations(points, 2)]
    rise, before, after = max(rises, key=lambda entry: entry[0])
    if rise <= 0:
        return Check(name, True, f"{points[0][1]} images right at {points[0][0]}, {points[-1][1]} at {points[-1][0]}")
    text = f"{before[1]} images right at {before[0]}, {after[1]} at {after[0]}; a rise of {allowed} is allowed"
    return Check(name, rise <= allowed, text)


def white_box_is_strongest(white_box: tuple[str, int], black_boxes: Mapping[str, int], allowed: int) -> Check:
    """Check that no black-box attack leaves fewer images right than the white-box one, by more than `allowed`."""
    name = "white_box_beats_black_box"
    if not black_boxes:
        return Check(name, None, "no black-box attack was run: set black_box, or name other models")
    strongest = min(black_boxes, key=lambda attack: black_boxes[attack])
    difference = white_box[1] - black_boxes[strongest]
    text = f"{white_box[1]} images right under {white_box[0]}, {black_boxes[strongest]} under {strongest}"
    if difference > 0:
        text += f"; a lead of {allowed} is allowed"
    return Check(name, difference <= allowed, text)


def reaches_zero(right: int, examples: int, steps: int) -> Check:
    """Check that no image at all is left by the attack that may do anything; there is no tolerance."""
    text = f"{right} of {examples} images right throughout {steps} steps of PGD inside the whole of [0, 1]"
    return Check("unbounded_reaches_zero", right == 0, text)


def enter(record: Record, checks: Sequence[Check]) -> None:
    """Enter checks into a record: the verdicts, a table of them, and a warning for each that failed."""
    record.checks |= {check.name: check.passed for check in checks}
    rows = [[WORDS[check.name], check.result, check.found] for check in checks]
    record.tables["checks"] = {"columns": ["check", "result", "what was found"], "rows": rows}
    record.warnings += [f"failed: {words}: {found}" for words, result, found in rows if result == "failed"]
