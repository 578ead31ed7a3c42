import dataclasses
import math

import pytest

from jrobust.reporting import claims, study
from jrobust.reporting.run_files import Run

GROUPS = tuple(study.Group(label, (f"{label}-0", f"{label}-1", f"{label}-2")) for label in ("base", "method"))
# By themselves the rows overlap: the seeds move both alike, and it is the pairs that tell them apart.
BASE, METHOD = (0.30, 0.50, 0.70), (0.33, 0.54, 0.75)
STUDY = study.Study(
    "c.py",
    (),
    ("acc",),
    (0, 1, 2),
    GROUPS,
    results={f"base-{i}": {"acc": value} for i, value in enumerate(BASE)}
    | {f"method-{i}": {"acc": value} for i, value in enumerate(METHOD)},
)
CLAIM = claims.Claim("method", "base", "acc", note="What limits it.")


def chapter(study, *of, **fields):
    given = {"title": "M, data", "text": "What is compared.", "command": "python it.py", "runs": (), "seconds": 90.0}
    return claims.Chapter(**given | fields, study=study, claims=of)


def test_differences_are_paired_by_seed():
    found = claims.judge(STUDY, CLAIM)
    assert found.pairs == ((0, 0.30, 0.33), (1, 0.50, 0.54), (2, 0.70, 0.75))
    half = 4.302652729749464 * 0.01 / math.sqrt(3)  # Student's t with two degrees of freedom, of 0.03, 0.04, 0.05
    assert (found.difference.low, found.difference.high) == pytest.approx((0.04 - half, 0.04 + half))
    assert found.above == 3 and found.holds and found.word == "yes"


def test_the_other_way_round_it_does_not_hold():
    found = claims.judge(STUDY, dataclasses.replace(CLAIM, method="base", baseline="method"))
    assert found.difference.mean == pytest.approx(-0.04) and found.above == 0 and not found.holds


def test_above_in_every_seed_is_not_enough():
    results = STUDY.results | {"method-0": {"acc": 0.301}, "method-1": {"acc": 0.501}, "method-2": {"acc": 0.9}}
    found = claims.judge(dataclasses.replace(STUDY, results=results), CLAIM)
    assert found.above == 3 and found.difference.mean > 0 > found.difference.low and not found.holds


@pytest.mark.parametrize("value", [None, {"acc": math.nan}])
def test_a_run_that_is_missing_leaves_a_claim_open(value):
    results = {folder: found for folder, found in STUDY.results.items() if folder != "method-2"}
    results["method-1"] = {"acc": 0.53}  # both that are there lie 0.03 above, so the interval alone would let it pass
    results |= {} if value is None else {"method-2": value}
    found = claims.judge(dataclasses.replace(STUDY, results=results), CLAIM)
    assert found.difference.count == 2 and found.difference.low == pytest.approx(0.03) and not found.holds
    assert [math.isnan(method) for _, _, method in found.pairs] == [False, False, True]


def test_only_what_is_expected_to_hold_is_a_failure():
    wrong = dataclasses.replace(CLAIM, method="base", baseline="method")
    known = dataclasses.replace(wrong, expected=False)
    (line,) = claims.failures(chapter(STUDY, CLAIM, wrong, known))
    assert line == "M, data: base is not above method in acc: -4.00 points, -6.48 to -1.52, above in 0 of 3 seeds"
    words = [row[-1] for row in claims.summary([chapter(STUDY, CLAIM, wrong, known)])]
    assert words == ["yes", "**no**", "no, as is known"]


def test_the_document(tmp_path):
    def run(created, commit):
        record = {"device": "1 x cpu (cpu)", "versions": {"jax": "0.10.2"}, "commit": commit, "created": created}
        return Run(tmp_path, {}, {}, [], [], {"accuracy": record})

    runs = (run("2026-11-22T23:59:00Z", "abc"), run("2026-11-23T00:01:00Z", "abc"), run("2026-11-23T00:02:00Z", "def"))
    text = claims.markdown([chapter(STUDY, CLAIM, runs=runs)], "python launch/claims.py", "2026-11-23")
    lines = text.splitlines()
    assert "| M, data | acc | method | base | +4.00 | +1.52 to +6.48 | 3 of 3 | yes |" in lines
    assert "| measure (%) | row | seed 0 | seed 1 | seed 2 | mean +- std |" in lines
    assert "| acc | base | 30.00 | 50.00 | 70.00 | 50.00 +- 16.33 |" in lines
    assert "    python launch/claims.py" in lines and "    python it.py" in lines and "ddof = 0" in text
    assert (
        "* `method` above `base` in acc: holds. Differences by seed +3.00, +4.00, +5.00; mean +4.00, 95 % interval"
        " +1.52 to +6.48; above in 3 of 3. What limits it." in lines
    )
    origin = "3 runs, 1.5 minutes by the clock; 1 x cpu (cpu); jax 0.10.2; commit abc and def, 2026-11-22 to 2026-11-23"
    assert origin in lines


def test_a_study_without_results_is_written_too():
    text = claims.markdown([chapter(dataclasses.replace(STUDY, results={}), CLAIM)], "python it.py", "2026-11-23")
    assert "| acc | base | - | - | - | - +- - |" in text and "No run came to its end." in text
