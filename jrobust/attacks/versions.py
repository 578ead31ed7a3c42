"""What AutoAttack consists of in its versions (Croce and Hein 2020): which attacks, how long, towards what."""

from __future__ import annotations

import dataclasses

from jrobust.attacks.apgd import APGD
from jrobust.attacks.fab import FAB
from jrobust.attacks.iterative import Iterative
from jrobust.attacks.square import Square
from jrobust.errors import InputError, unknown

VERSIONS = ("standard", "plus", "rand", "few")
MAX_TARGETS = 9


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long the attacks run. The defaults are AutoAttack; anything less is a weaker attack and not comparable.

    Attributes:
      apgd_steps, fab_steps: iterations a run.
      square_queries: iterations of Square.
      eot: draws that a gradient is the mean of, in version "rand".
    """

    apgd_steps: int = 100
    fab_steps: int = 100
    square_queries: int = 5000
    eot: int = 20

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(f"{field.name}={getattr(self, field.name)}: expected a number of at least 1")


@dataclasses.dataclass(frozen=True)
class Part:
    """One attack of the sequence.

    Attributes:
      name: how results call it.
      attack: its numbers.
      variants: rows an image: targets or restarts.
      targeted: variant v aims at the class of rank v + 2 of the clean logits.
      passes: forward and backward passes of an iteration.
      first_passes: those of the beginning of a row.
      text: what it does, for protocols.
    """

    name: str
    attack: Iterative
    variants: int
    targeted: bool
    passes: tuple[int, int]
    first_passes: tuple[int, int]
    text: str

    def work(self, rows: int, iterations: int) -> float:
        """Return what so much costs in forward passes, a backward pass counted as two."""
        one, first = (forward + 2 * backward for forward, backward in (self.passes, self.first_passes))
        return rows * first + iterations * one


def parts(version: str, norm: str, classes: int, budget: Budget | None = None) -> tuple[Part, ...]:
    """Return the attacks of a version in their order.

    * standard: APGD-CE, APGD-T and FAB-T with 9 targets each, Square;
    * plus: 5 restarts of APGD-CE, APGD-DLR and untargeted FAB, then Square, APGD-T, FAB-T;
    * rand, for randomised models: APGD-CE and APGD-DLR, gradients being means over draws;
    * few, for fewer than the 10 classes that standard is defined for: APGD-CE, untargeted FAB, Square.

    In the others there are fewer targets with fewer classes. The targeted DLR needs 4 classes: with 3, APGD-DLR takes
    the place of APGD-T in standard, with a restart for each target. With 2 there is no DLR at all: what uses it is left
    out.

    >>> [(part.name, part.variants) for part in parts("standard", "linf", 3)]
    [('apgd-ce', 1), ('apgd-dlr', 2), ('fab-t', 2), ('square', 1)]

    Raises:
      InputError: an unknown version or norm, or a single class.
    """
    budget = budget or Budget()
    if version not in VERSIONS:
        raise unknown("version of AutoAttack", version, VERSIONS)
    if norm not in ("linf", "l2"):
        raise unknown("norm", norm, ("linf", "l2"))
    if classes < 2:
        raise InputError(f"the logits have {classes} class: expected one logit a class, and at least 2 classes")
    targets = min(MAX_TARGETS, classes - 1)
    eot = budget.eot if version == "rand" else 0
    steps, draws = budget.apgd_steps, max(eot, 1)

    def apgd(name: str, loss: str, variants: int) -> list[Part]:
        if classes < {"ce": 2, "dlr": 3, "targeted_dlr": 4}[loss]:
            return []
        attack = APGD(loss, norm, steps, eot=eot)  # type: ignore[arg-type]
        targeted = loss == "targeted_dlr"
        text = f"{name.upper()} {_times(variants, targeted)}{steps} steps{f', EOT {eot}' if eot else ''}"
        return [Part(name, attack, variants, targeted, (draws, draws), (draws, draws), text)]

    def fab(name: str, variants: int, *, targeted: bool = False, random_start: bool = False) -> list[Part]:
        attack = FAB(norm, budget.fab_steps, targeted=targeted, random_start=random_start)
        label = "FAB from random points" if random_start else name.upper()
        text = f"{label} {_times(variants, targeted)}{budget.fab_steps} steps"
        return [Part(name, attack, variants, targeted, (2, 1 if targeted else classes), (1, 0), text)]

    square = Part(
        "square",
        Square(norm, budget.square_queries),
        1,
        False,
        (1, 0),
        (2, 0),
        f"Square {budget.square_queries} queries",
    )
    if version == "rand":
        return (*apgd("apgd-ce", "ce", 1), *apgd("apgd-dlr", "dlr", 1))
    if version == "few":
        return (*apgd("apgd-ce", "ce", 1), *fab("fab", 1), square)
    fab_t = fab("fab-t", targets, targeted=True)
    apgd_t = apgd("apgd-t", "targeted_dlr", targets)
    if version == "plus":
        # The first run of FAB begins at the image, the others at random points: two records.
        untargeted = (*apgd("apgd-ce", "ce", 5), *apgd("apgd-dlr", "dlr", 5), *fab("fab", 1))
        return (*untargeted, *fab("fab-random", 4, random_start=True), square, *apgd_t, *fab_t)
    return (*apgd("apgd-ce", "ce", 1), *(apgd_t or apgd("apgd-dlr", "dlr", targets)), *fab_t, square)


def title(version: str, budget: Budget) -> str:
    """Return how a run is called: only the whole budget is AutoAttack.

    >>> title("standard", Budget()), title("standard", Budget(square_queries=100))
    ('AutoAttack standard', 'shortened AutoAttack (standard), not comparable with AutoAttack')
    """
    if budget == Budget(eot=Budget.eot if version == "rand" else budget.eot):
        return "AutoAttack for few classes" if version == "few" else f"AutoAttack {version}"
    return f"shortened AutoAttack ({version}), not comparable with AutoAttack"


def _times(variants: int, targeted: bool) -> str:
    if targeted:
        return f"{variants} target{'s' if variants > 1 else ''} x "
    return f"{variants} x " if variants > 1 else ""
