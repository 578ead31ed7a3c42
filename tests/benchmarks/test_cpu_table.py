import json

import pytest

from benchmarks import cpu_table, measure
from jrobust.errors import InputError

SCRIPT = """
import json, pathlib, sys
row = json.loads(sys.argv[1]) | {"command": "python one.py"}
path = pathlib.Path(sys.argv[-1].removeprefix("--output="))
path.write_text(json.dumps(row))
sys.exit(row["status"])
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    row = {"name": "jrobust", "title": "one", "platform": "cpu", "cpu_cores": 2, "devices": 1, "device": "cpu"}
    row |= {"versions": {}, "commit": "abc", "date": "2026-01-01", "load_before": 0.1, "load_after": 0.1, "status": 0}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(cpu_table.provenance, "commit", lambda: "abc")
    monkeypatch.setattr(cpu_table, "settle", lambda: None)

    def run(names, **changes):
        parts = [cpu_table.Part(n, f"{script} '{json.dumps(row | changes)}'", 1.0) for n in ("attack", "steps")]
        failed = cpu_table.main([f"--parts={names}", f"--folder={tmp_path}", f"--output={tmp_path / 'a.md'}"], parts)
        return failed, (tmp_path / "a.md").read_text(), capfd.readouterr().out

    return run


def test_goes_on_where_it_was_interrupted(run):
    failed, text, printed = run("attack")
    assert failed == 0 and text.count("## One") == 1 and "(1 of 1), about 1 minutes left" in printed
    failed, text, printed = run("")
    assert text.count("## One") == 2 and "attack: measured before" in printed and "steps (1 of 1)" in printed


def test_what_was_busy_or_of_another_commit_is_measured_again(run):
    for changes in ({"load_before": 5.0}, {"commit": "old"}):
        run("attack", **changes)
        assert "measured before" not in run("attack", **changes)[2]


def test_a_part_that_fails_is_said_and_the_others_run(run):
    failed, text, printed = run("", status=1)
    assert failed == 2 and "failed: attack, steps" in printed and text.count("## One") == 2


def test_no_such_part(run):
    with pytest.raises(InputError, match="expected a word out of attack, steps"):
        run("attacks")


def test_the_commands_are_of_scripts_that_are_there():
    assert all((measure.ROOT / part.command.split()[0]).is_file() for part in cpu_table.PARTS)
    assert sum(part.minutes for part in cpu_table.PARTS) <= 20
