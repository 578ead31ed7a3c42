"""The command of the claims: its table, its verdicts on runs that say what they are told, and real ones."""

import dataclasses
import json
import re
import signal

import claimed
import pytest
import session
from papers import PAPERS, Paper

from jrobust.errors import InputError
from jrobust.reporting import page
from jrobust.reporting.claims import Claim
from jrobust.training import parallel

HOLDS = Claim("width=7", "width=4", "accuracy")
FAILS = Claim("width=5", "width=4", "accuracy")


@pytest.fixture
def paper(config_file):
    return Paper(
        "a", "A, digits", str(config_file), "", 2, (), ("width=4", "width=5", "width=7"), (0, 1), ("accuracy",)
    )


@pytest.mark.parametrize("paper", PAPERS, ids=[paper.name for paper in PAPERS])
def test_a_claim_is_about_rows_and_measures_of_its_study(paper, tmp_path):
    study, configs = claimed.plan(paper, tmp_path)
    labels = [group.label for group in study.groups]
    assert len(study.seeds) >= 3 and len(configs) == len(labels) * len(study.seeds)
    for claim in paper.claims:
        assert claim.method in labels and claim.baseline in labels and claim.method != claim.baseline
        assert claim.measure in study.measures
    assert any(claim.expected for claim in paper.claims) or paper.name in ("art", "fsr")


def test_papers_are_chosen_by_name():
    assert [paper.name for paper in claimed.choose(PAPERS, ["fsr", "art"])] == ["art", "fsr"]
    assert claimed.choose(PAPERS, None) == list(PAPERS) and len({paper.name for paper in PAPERS}) == 5
    with pytest.raises(InputError, match=r"unknown paper 'biasdv': expected one of art, .*did you mean 'biasadv'"):
        claimed.choose(PAPERS, ["biasdv"])


@pytest.mark.parametrize(
    "of, status", [((HOLDS,), 0), ((HOLDS, FAILS), 1), ((HOLDS, dataclasses.replace(FAILS, expected=False)), 0)]
)
def test_the_status_is_that_of_what_is_expected(paper, runs, tmp_path, capsys, of, status):
    output = tmp_path / "docs" / "claims.md"
    papers = [dataclasses.replace(paper, claims=of), dataclasses.replace(paper, name="b", claims=(HOLDS,))]
    assert claimed.conduct(papers, tmp_path, output, "python launch/claims.py") == status
    shown, text = capsys.readouterr(), output.read_text()
    assert "A, digits: paper 2 of 2; about " in shown.out
    assert re.search(r"width=7 *│ width=4 *│ \+25.00 *│ \+25.00 to \+25.00 *│ 2 of 2 *│ yes", shown.out)
    assert "| A, digits | accuracy | width=7 | width=4 | +25.00 | +25.00 to +25.00 | 2 of 2 | yes |" in text
    assert ("width=5 is not above width=4 in accuracy: +6.25 points" in shown.err) == bool(status)
    assert len(runs) == 12 and (tmp_path / "b" / "study.json").exists()


def test_what_is_done_is_not_repeated_and_a_signal_ends_it(paper, runs, tmp_path, monkeypatch, capsys):
    papers, output = [dataclasses.replace(paper, claims=(HOLDS,))], tmp_path / "claims.md"
    run_one = session.run_one

    def stopped(config, workdir, *, progress):
        return run_one(config, workdir, progress=progress) if len(runs) < 3 else session.Outcome([], signal.SIGTERM)

    monkeypatch.setattr(session, "run_one", stopped)
    assert claimed.conduct(papers, tmp_path, output, "") == 143 and not output.exists()
    assert "about 2 min 0 s left" in capsys.readouterr().out
    monkeypatch.setattr(session, "run_one", run_one)
    assert claimed.conduct(papers, tmp_path, output, "") == 0 and len(runs) == len(set(runs)) == 6
    assert "about 1 min 0 s left" in capsys.readouterr().out


def test_real_runs(tmp_path, monkeypatch):
    """AT beside AT with FSR at the size for tests, from the config to the document."""
    mesh = parallel.make_mesh(1)
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)
    monkeypatch.setattr(page, "write", lambda workdir: None)  # of each run; other tests draw it
    changes = ("method.num_steps=1", "train.steps=2", "evaluation.after_training=('accuracy',)")
    real = Paper(
        "fsr",
        "FSR, digits",
        "configs/fsr_digits.py:runlocal",
        "",
        1,
        (Claim("method=at,fsr", "method=at", "accuracy", expected=False),),
        rows=("method=at", "method=at,fsr"),
        seeds=(0,),
        overrides=tuple(f"--config.{change}" for change in changes),
    )
    assert claimed.conduct([real], tmp_path, tmp_path / "claims.md", "python launch/claims.py") == 0
    rows = json.loads((tmp_path / "fsr" / "study.json").read_text())["groups"]
    base, method = ([run["values"]["accuracy"] for run in row["runs"]] for row in rows)
    text = (tmp_path / "claims.md").read_text()
    differences = ", ".join(f"{100 * (b - a):+.2f}" for a, b in zip(base, method, strict=True))
    assert f"Differences by seed {differences}; mean" in text and "2 runs, " in text
    assert '--config=configs/fsr_digits.py:runlocal --seeds=0 "--rows=method=at;method=at,fsr"' in text
