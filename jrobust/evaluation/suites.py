"""The table of suites, and the one call that runs some of them and writes their records."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject


def run_suites(
    names: Sequence[str],
    subject: Subject,
    source: Any,
    settings: Mapping[str, Any],
    workdir: str | os.PathLike | None = None,
    *,
    against: Sequence[Subject] = (),
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> list[Record]:
    """Run suites on a subject and write WORKDIR/evaluation/<suite>.json, .csv (per example) and .npz (gallery)."""
    raise NotImplementedError
