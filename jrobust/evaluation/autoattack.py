"""Suite `autoattack`: accuracy under AutoAttack, the field's standard judge; a killed run goes on where it was."""

from __future__ import annotations

import dataclasses
import inspect
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jrobust import units
from jrobust.attacks import Threat
from jrobust.attacks.autoattack import AutoAttackResult, Progress, autoattack
from jrobust.attacks.autoattack_state import State, StateError
from jrobust.attacks.versions import VERSIONS, Budget, parts, title
from jrobust.errors import InputError, unknown
from jrobust.evaluation.attack import NORMS, threat_text
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.estimates import proportion
from jrobust.evaluation.progress import track
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

DEFAULTS = {"examples": 1000}
STATE = "autoattack.state.npz"
SAVE_SECONDS = 30.0
SHORTENED = "shortened AutoAttack"  # what is not AutoAttack must not stand under its name in a table


@dataclasses.dataclass(frozen=True)
class Settings:
    """The ball and the version; radii are text in pixel units of [0, 1].

    Attributes:
      norm: "linf" or "l2".
      eps: the radius.
      version: "standard" or "plus"; "rand" for a subject whose logits take `keys`; "few" for fewer than 10 classes,
        see `jrobust.attacks.versions.parts`.
      apgd_steps, fab_steps, square_queries: lengths of the attacks. Less than the defaults is not AutoAttack, and the
        record says so.
    """

    norm: str = "linf"
    eps: str = "8/255"
    version: str = "standard"
    apgd_steps: int = Budget.apgd_steps
    fab_steps: int = Budget.fab_steps
    square_queries: int = Budget.square_queries

    def __post_init__(self):
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.version not in VERSIONS:
            raise unknown("version of AutoAttack", self.version, VERSIONS)
        units.parse(self.eps)
        self.budget()

    def budget(self) -> Budget:
        """Return the lengths."""
        return Budget(self.apgd_steps, self.fab_steps, self.square_queries)

    def protocol(self, classes: int, count: int | None = None) -> str:
        """Return the sentence that identifies the accuracy under all attacks, or under the first `count`."""
        sequence = parts(self.version, self.norm, classes, self.budget())
        attacks = "; ".join(part.text for part in sequence[:count])
        some = f"the first {count} of the {len(sequence)} attacks of " if count and count < len(sequence) else ""
        name = f"{some}{title(self.version, self.budget())}"
        return f"{name}, {threat_text(self.norm, self.eps)}: {attacks}; each on what the ones before left"


@dataclasses.dataclass(frozen=True)
class _WithKeys:
    """The logits of a randomised subject, in the form the attack calls."""

    logits: Callable[..., jax.Array]

    def __call__(self, variables: Any, images: jax.Array, keys: jax.Array) -> jax.Array:
        return self.logits(variables, images, keys=keys)


def check(settings: Settings, subject: Subject, source: Any) -> None:
    """Raise InputError if the version does not fit the subject."""
    del source
    parts(settings.version, settings.norm, len(subject.class_names), settings.budget())
    if settings.version == "rand":
        try:
            inspect.signature(subject.logits).bind(None, None, keys=None)
        except TypeError as error:
            raise InputError(
                f"the logits function of {subject.name!r} takes no argument keys: version 'rand' attacks a randomised"
                " logits(variables, images, *, keys); use version 'standard'"
            ) from error


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    batch_size: int = 256,
    examples: int = 1000,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    workdir: str | os.PathLike | None = None,
) -> Record:
    """Return clean and robust accuracy, what each attack of the sequence broke, and what makes the numbers doubtful.

    `robust_accuracy` is the share of images that are right as they are and that no attack broke (called `shortened
    AutoAttack` where the attacks are); `after <attack>` is the share that stands after that attack. An image's outcome
    depends on `seed` and its index, not on the batch size.

    With a `workdir` the state of the run is saved every half minute and after each attack to
    WORKDIR/evaluation/autoattack.state.npz, and a run with the same arguments goes on from there; a state of another
    run is set aside. `forget` removes it.

    Args are those of the accuracy suite. The per-example table has `broken_by` (the attack, "clean", or nothing),
    `margin` (of the adversarial image where there is one; positive where misclassified), `linf` and `l2`.

    Raises:
      InputError: see `check` and `jrobust.attacks.autoattack.autoattack`.
    """
    settings = settings or Settings()
    check(settings, subject, source)
    begin = time.perf_counter()
    data = gathered(source, batch_size, choose(source, examples))
    path = pathlib.Path(workdir) / "evaluation" / STATE if workdir is not None else None
    with track("autoattack", 1, progress) as advance:
        result, earlier = attacked(
            subject, data, settings, batch_size=batch_size, seed=seed, mesh=mesh, path=path, advance=advance
        )
    record = _record(subject, source, settings, data, result, seed)
    record.seconds = earlier + time.perf_counter() - begin
    return record


class Examples(NamedTuple):
    """Images float32[N, H, W, C] on the host, with their labels and their numbers in the source."""

    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray


def gathered(source: Any, batch_size: int, order: np.ndarray) -> Examples:
    """Read the images of a source at the positions `order`."""
    kept: dict[str, list[np.ndarray]] = {"image": [], "label": [], "index": []}
    for batch in batches(source, batch_size, order):
        for name, column in kept.items():
            column.append(np.asarray(batch[name])[np.asarray(batch["valid"])])
    return Examples(*(np.concatenate(column) for column in kept.values()))


def attacked(
    subject: Subject,
    data: Examples,
    settings: Settings,
    *,
    batch_size: int,
    seed: int,
    mesh: jax.sharding.Mesh | None,
    path: pathlib.Path | None,
    advance: Callable[[float], None],
) -> tuple[AutoAttackResult, float]:
    """Return what the attacks did, and the seconds of earlier runs whose state, in the file `path`, was gone on from.

    `advance` is told the shares of the work as they are done, which add up to 1.
    """
    state = _saved(path)

    def attack(state: State | None) -> AutoAttackResult:
        with jax.default_matmul_precision("highest"):
            return autoattack(
                _WithKeys(subject.logits) if settings.version == "rand" else subject.logits,
                *data[:2],
                jax.random.key(seed),
                Threat(settings.norm, units.number(settings.eps)),
                settings.version,
                variables=subject.variables,
                index=data.numbers,
                budget=settings.budget(),
                batch_size=batch_size,
                mesh=mesh,
                state=state,
                progress=_Keeper(path, advance),
            )

    earlier = float(state.tallies[:, 0].sum()) if state else 0.0
    try:
        return attack(state), earlier
    except StateError as error:
        _set_aside(path, error)
        return attack(None), 0.0


def forget(workdir: str | os.PathLike) -> None:
    """Remove the state of a run whose record is written."""
    (pathlib.Path(workdir) / "evaluation" / STATE).unlink(missing_ok=True)


class _Keeper:
    """Shows progress and saves the state now and then."""

    def __init__(self, path: pathlib.Path | None, advance: Callable[[float], None]):
        self._path, self._advance = path, advance
        self._shown, self._saved = 0.0, time.monotonic()

    def __call__(self, event: Progress) -> None:
        share = event.done / (event.done + event.left) if event.done + event.left else 1.0
        self._advance(share - self._shown)
        self._shown = share
        if self._path is not None and (event.part_ended or time.monotonic() - self._saved >= SAVE_SECONDS):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            event.state.save(self._path)
            self._saved = time.monotonic()


def _saved(path: pathlib.Path | None) -> State | None:
    """Return the state of an earlier run, if there is one."""
    if path is None or not path.exists():
        return None
    try:
        return State.load(path)
    except StateError as error:
        _set_aside(path, error)
        return None


def _set_aside(path: pathlib.Path | None, error: StateError) -> None:
    assert path is not None
    other = path.with_name(path.name.replace(".npz", ".old.npz"))
    os.replace(path, other)
    print(f"autoattack: beginning anew: {error}; it is now {other}", file=sys.stderr, flush=True)


def _record(
    subject: Subject, source: Any, settings: Settings, data: Examples, result: AutoAttackResult, seed: int
) -> Record:
    images, labels, index = data
    total = len(labels)
    delta = (result.adv_images - images).reshape(total, -1)
    correct = result.broken_by != "clean"
    record = Record.of("autoattack", subject, source, examples=total, seed=seed)
    record.settings, record.threat = dataclasses.asdict(settings), threat_text(settings.norm, settings.eps)
    record.columns = {
        "index": index,
        "label": labels,
        "correct": correct,
        "robust": ~result.success,
        "broken_by": result.broken_by,
        "clean_margin": result.clean_margin,
        "margin": result.loss,
        "steps": result.steps,
        "linf": np.abs(delta).max(1),
        "l2": np.linalg.norm(delta, axis=1),
    }
    record.metrics["accuracy"], record.protocols["accuracy"] = proportion(correct), "images as they are"
    rows, standing, classes = [], correct.copy(), len(subject.class_names)
    for count, part in enumerate(result.parts, 1):
        standing &= result.broken_by != part.name
        share = proportion(standing)
        if count < len(result.parts):
            name = f"after {part.name}"
        else:
            name = "robust_accuracy" if settings.budget() == Budget() else SHORTENED
        record.metrics[name], record.protocols[name] = share, settings.protocol(classes, count)
        cells = [part.name, part.attacked, part.broken, share.value, part.seconds, part.forward, part.backward]
        rows.append(cells)
    columns = ["attack", "attacked", "broken", "robust accuracy", "seconds", "forward", "backward"]
    record.tables["parts"] = {"columns": columns, "rows": rows}
    record.checks, record.warnings = dict(result.checks), [flag.text for flag in result.flags]
    record.attack_steps = sum(part.backward for part in result.parts)
    record.attack_steps_per_second = result.gradients_per_second
    return record
