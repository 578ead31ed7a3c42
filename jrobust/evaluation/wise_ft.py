"""What a suite measures between the original and the fine-tuned weights: the curve of WiSE-FT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax

from jrobust.errors import InputError
from jrobust.evaluation.estimates import Estimate
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject, replicated

CURVE = "wise_ft"  # name of the curve and of the table


def check(shares: Sequence[float], subject: Subject) -> None:
    """Raise InputError if a share is none, or nothing is known of what the model was before."""
    text = ",".join(map(str, shares))
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(f"shares={text}: expected numbers from 0 to 1, none for no curve")
    if shares and subject.zero_shot is None:
        raise InputError(
            f"shares={text}: what {subject.name!r} was before fine-tuning is not known, as it is of a CLIP (a Subject"
            " of your own: give it `zero_shot`); leave shares out"
        )


def add(
    record: Record,
    subject: Subject,
    shares: Sequence[float],
    names: tuple[str, str],
    measure: Callable[[Subject], Mapping[str, Estimate]],
    mesh: jax.sharding.Mesh | None = None,
) -> None:
    """Add to a record two of its metrics on the way from the original to the fine-tuned model, as a curve and a table.

        th(a) = (1 - a) th0 + a th1      th0 original, th1 fine-tuned, a each of `shares`

    Args:
      record: of the suite, on the subject itself.
      subject: the fine-tuned model.
      shares: of it; nothing is done without any.
      names: of the metrics in distribution and out of it, in this order.
      measure: returns the metrics of a model; those that are not there are left out.
      mesh: where the models are put.
    """
    found = {}
    for share in sorted(set(shares)):
        assert subject.zero_shot is not None  # `check` has seen to it
        metrics = measure(replicated(subject.zero_shot.interpolated(share), mesh))
        found[share] = {name: metrics[name] for name in names if name in metrics}
    if found:
        record.curves[CURVE] = [{"label": f"{share:g}", "x": share} | point for share, point in found.items()]
        measured = list(next(iter(found.values())))
        rows = [[f"{share:g}", *(estimate.value for estimate in point.values())] for share, point in found.items()]
        record.tables[CURVE] = {"columns": ["share", *measured], "rows": rows}
