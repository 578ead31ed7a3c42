"""Claims: that one row of a study lies above another in a measure, seed by seed; and the document of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from jrobust.reporting import tables
from jrobust.reporting.run_files import Run
from jrobust.reporting.study import Spread, Study, spread

TITLE = "Claims"
RULE = (
    "A claim is that a method lies above its own baseline in a measure. Runs of the two are paired by seed: the"
    " difference of a pair is method - baseline, and its 95 % interval that of the mean over n seeds by Student's t"
    " with n - 1 degrees of freedom. A claim holds where every run came to its end and the whole interval is above"
    " zero. Mean +- standard deviation are over seeds, divided by n (ddof = 0). The interval is of what seeds change,"
    " with one and the same test set; it says nothing of other data."
)
SUMMARY = ("paper", "measure", "method", "baseline", "mean difference", "95 % interval (t)", "above in", "holds")


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a row of a study lies above another in a measure of which more is better.

    Attributes:
      method, baseline: labels of the two rows.
      measure: name of the metric.
      expected: whether a claim that does not hold is a failure of the code; otherwise the paper's claim is not known to
        show on so small a problem.
      note: what limits it, or why it may not hold.
    """

    method: str
    baseline: str
    measure: str
    expected: bool = True
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a study says of a claim.

    Attributes:
      claim: which one.
      pairs: seed, the baseline's value and the method's; NaN where there is none.
      difference: method - baseline over the seeds that have both.
    """

    claim: Claim
    pairs: tuple[tuple[int, float, float], ...]
    difference: Spread

    @property
    def above(self) -> int:
        """Return in how many seeds the method is above its baseline."""
        return sum(method > baseline for _, baseline, method in self.pairs)

    @property
    def holds(self) -> bool:
        """Return whether every seed has both values and the interval of the mean difference is above zero."""
        return self.difference.count == len(self.pairs) and self.difference.low > 0

    @property
    def word(self) -> str:
        """Return the verdict as the tables say it."""
        if self.holds:
            return "yes"
        return "**no**" if self.claim.expected else "no, as is known"


@dataclasses.dataclass(frozen=True)
class Chapter:
    """What the document says of one paper.

    Attributes:
      title: the method and the data.
      text: what is compared, and how its settings were chosen.
      command: what trains and evaluates these runs by themselves.
      study: with its results.
      claims: about its rows.
      runs: of the study, as they left their files.
      seconds: of all runs together.
    """

    title: str
    text: str
    command: str
    study: Study
    claims: tuple[Claim, ...]
    runs: tuple[Run, ...]
    seconds: float

    @property
    def verdicts(self) -> list[Verdict]:
        """Return what the study says of each claim."""
        return [judge(self.study, claim) for claim in self.claims]


def judge(study: Study, claim: Claim) -> Verdict:
    """Return the verdict on a claim: differences paired by seed, d_k = method_k - baseline_k."""
    folders = {group.label: group.folders for group in study.groups}
    values = [
        [study.results.get(folder, {}).get(claim.measure, math.nan) for folder in folders[label]]
        for label in (claim.baseline, claim.method)
    ]
    pairs = tuple(zip(study.seeds, *values, strict=True))
    return Verdict(claim, pairs, spread(method - baseline for _, baseline, method in pairs))


def failures(chapter: Chapter) -> list[str]:
    """Return a line for each claim that is expected to hold and does not."""
    return [
        f"{chapter.title}: {v.claim.method} is not above {v.claim.baseline} in {tables.metric_name(v.claim.measure)}:"
        f" {points(v.difference.mean)} points, {_interval(v.difference)}, above in {v.above} of {len(v.pairs)} seeds"
        for v in chapter.verdicts
        if v.claim.expected and not v.holds
    ]


def summary(chapters: Iterable[Chapter]) -> list[list[str]]:
    """Return the rows of the table of all claims; differences in percentage points."""
    return [
        [
            chapter.title,
            tables.metric_name(v.claim.measure),
            v.claim.method,
            v.claim.baseline,
            points(v.difference.mean),
            _interval(v.difference),
            f"{v.above} of {len(v.pairs)}",
            v.word,
        ]
        for chapter in chapters
        for v in chapter.verdicts
    ]


def markdown(chapters: Sequence[Chapter], command: str, written: str) -> str:
    """Return the document: all claims in one table, then each paper with the values of every seed.

    Args:
      chapters: one a paper.
      command: what writes it.
      written: the date.
    """
    lines = [f"# {TITLE}", "", f"    {command}", "", RULE, "", *_table(SUMMARY, summary(chapters))]
    for chapter in chapters:
        lines += ["", f"## {chapter.title}", "", chapter.text, "", f"    {chapter.command}", ""]
        lines += _table(*values(chapter))
        lines += [line for v in chapter.verdicts for line in _verdict(v)]
        lines += ["", origin(chapter)]
    return "\n".join([*lines, "", f"Written {written}.", ""])


def values(chapter: Chapter) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of a study: every measure of a claim, every row of the study, every seed."""
    study = chapter.study
    columns = ["measure (%)", "row", *(f"seed {seed}" for seed in study.seeds), "mean +- std"]
    rows = []
    for measure in dict.fromkeys(claim.measure for claim in chapter.claims):
        for group in study.groups:
            found = [study.results.get(folder, {}).get(measure, math.nan) for folder in group.folders]
            over = spread(found)
            mean = f"{tables.percent(over.mean)} +- {tables.percent(over.std)}"
            rows.append([tables.metric_name(measure), group.label, *map(tables.percent, found), mean])
    return columns, rows


def origin(chapter: Chapter) -> str:
    """Return with what the values were measured: every device, set of versions, commit and day among the records."""
    records = [record for run in chapter.runs for record in run.records.values()]
    devices = dict.fromkeys(record.get("device", "") for record in records)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()) for record in records
    )
    commits = dict.fromkeys(record.get("commit") or "of no checkout" for record in records)
    days = sorted({record.get("created", "")[:10] for record in records})
    if not records:
        return "No run came to its end."
    spent = f"{len(chapter.runs)} runs, {chapter.seconds / 60:.1f} minutes by the clock"
    return (
        f"{spent}; {' and '.join(devices)}; {' / '.join(versions)}; commit {' and '.join(commits)},"
        f" {' to '.join(dict.fromkeys((days[0], days[-1])))}"
    )


def points(difference: float) -> str:
    """Return a difference of shares in percentage points with its sign: "+1.25", or "-" for nothing."""
    return "-" if math.isnan(difference) else f"{100 * difference:+.2f}"


def _interval(found: Spread) -> str:
    return "-" if math.isnan(found.low) else f"{points(found.low)} to {points(found.high)}"


def _verdict(verdict: Verdict) -> list[str]:
    """Return the paragraph of a claim."""
    claim, each = verdict.claim, ", ".join(points(method - baseline) for _, baseline, method in verdict.pairs)
    name = tables.metric_name(claim.measure)
    text = (
        f"* `{claim.method}` above `{claim.baseline}` in {name}: {'holds' if verdict.holds else 'does not hold'}."
        f" Differences by seed {each}; mean {points(verdict.difference.mean)}, 95 % interval"
        f" {_interval(verdict.difference)}; above in {verdict.above} of {len(verdict.pairs)}."
    )
    return ["", f"{text} {claim.note}".rstrip()]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    body = [columns, [":---"] * len(columns), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in body]
