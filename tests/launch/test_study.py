"""Studies: which runs there are, that done ones are not repeated, and that one ends where it was killed."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import command
import grid
import ml_collections
import pytest
import session

from jrobust import data
from jrobust.errors import InputError
from jrobust.training import parallel
from jrobust.training.logging import DivergedError


@pytest.fixture
def plan(config_file):
    def plan(*, words="", overrides=(), rows=("",), seeds=(0, 1), measures=("accuracy",), **others):
        argument = f"{config_file}:{words}" if words else str(config_file)
        return grid.plan(argument, overrides, rows=rows, seeds=seeds, measures=measures, **others)

    return plan


def test_the_fifteen_points_of_a_sweep_share_their_centre(plan):
    sweeps = (
        "config.optimizer.learning_rate=0.05,0.1,0.2,0.4",
        "optimizer.momentum=0.5,0.7,0.9,0.95,.99",
        "train.steps=1,2,4,8,16",
        "optimizer.weight_decay=0.0,0.1,0.2,0.3",
    )
    study, configs = plan(seeds=(0, 1, 2), sweeps=sweeps)
    assert len(study.groups) == 15 and len(configs) == 45
    assert {sweep.field: len(sweep.points) for sweep in study.sweeps}["train.steps"] == 5
    for sweep in study.sweeps:
        assert sum(label == "tiny" for _, label in sweep.points) == 1
    own = configs["tiny-seed1"]
    swept = configs["tiny-optimizer.momentum=.99-seed2"]
    assert own.seed == 1 and swept.seed == 2 and swept.optimizer.momentum == 0.99 and swept.train.steps == 4


def test_a_radius_is_the_same_however_it_is_written():
    config = ml_collections.ConfigDict({"method": {"eps": "0.5", "name": "standard"}})
    for text, same in ((".5", True), ("127.5/255", True), ("0.25", False), ("half", False)):
        changed = ml_collections.ConfigDict({"method": {"eps": text, "name": "standard"}})
        assert grid._is_own(config, changed, "method.eps") == same
    assert grid._is_own(config, config, "method.name")


def test_the_time_left_is_that_of_the_runs_that_are_left(plan):
    study, _ = plan()
    study.results["tiny-seed0"] = {"accuracy": 0.5}
    line = grid._line(study, "tiny-seed0", "run 1 of 4", [10.0, 20.0], 3)
    assert line == "run 1 of 4: tiny-seed0: accuracy 50.00; 45.0 s left"
    assert grid._line(study, "tiny-seed1", "run 4 of 4", [10.0], 0) == "run 4 of 4: tiny-seed1: diverged"


def test_rows_words_and_overrides_make_the_config_that_the_command_for_one_run_would_read(plan, read):
    study, configs = plan(
        words="width=6",
        overrides=("--config.train.steps=9", "--noconfig.data.resident"),
        rows=("width=4,method=jtt", "width=5,study"),
        baseline="width=3",
        sweeps=("model.width=4,5",),
    )
    assert [group.label for group in study.groups] == [
        *("width=4,method=jtt", "width=5,study", "width=3"),
        *("width=4,method=jtt, model.width=5", "width=5,study, model.width=4"),
    ]
    assert study.baseline == "width=3"
    found = configs["width=4-method=jtt-model.width=5-seed1"]
    assert found.is_locked and found.jtt.copies == 3
    changed = ("--config.train.steps=9", "--noconfig.data.resident", "--config.model.width=5", "--config.seed=1")
    assert found.to_dict() == read("width=6,width=4,method=jtt", *changed).to_dict()
    assert "study" not in configs["width=5-study-seed0"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"overrides": ("--config.seed=3",)}, r"--config.seed=3: a study sets the seed of every run.*--seeds=0,1,2"),
        ({"rows": ("width=4", "widht=5")}, r"^row widht=5: unknown config argument.*did you mean 'width'"),
        ({"overrides": ("--config.train.stepz=3",)}, r"row tiny: unknown config key.*did you mean 'train.steps'"),
        ({"sweeps": ("train.stepz=3",)}, r"unknown config key 'train.stepz'"),
        ({"sweeps": ("train.steps=few",)}, r"--config.train.steps=few: expected a whole number"),
        ({"sweeps": ("train.steps",)}, r"sweep 'train.steps' is not of the form FIELD=VALUE,VALUE"),
        ({"sweeps": ("seed=1,2",)}, r"sweep 'seed=1,2'"),
        ({"seeds": (1, 1)}, r"seeds that differ"),
        ({"rows": ("width=4,", "width=4-")}, r"would share the folder"),
    ],
)
def test_mistakes(plan, change, message):
    with pytest.raises(InputError, match=message):
        plan(**change)


def test_one_that_is_killed_goes_on_and_done_runs_are_not_repeated(plan, runs, tmp_path, monkeypatch, capsys):
    run_one, arguments = session.run_one, {"rows": ("width=4", "width=5")}

    def stopped(config, workdir, *, progress):
        return run_one(config, workdir, progress=progress) if len(runs) < 2 else session.Outcome([], signal.SIGTERM)

    monkeypatch.setattr(session, "run_one", stopped)
    assert grid.conduct(*plan(**arguments), tmp_path) == 143
    assert runs == ["width=4-seed0", "width=4-seed1"]
    assert "stopped in width=5-seed0; the same command goes on from there" in capsys.readouterr().out
    partial = json.loads((tmp_path / "study.json").read_text())
    assert [group["measures"]["accuracy"]["count"] for group in partial["groups"]] == [2, 0]

    monkeypatch.setattr(session, "run_one", run_one)
    assert grid.conduct(*plan(**arguments), tmp_path) == 0
    assert runs[2:] == ["width=5-seed0", "width=5-seed1"]
    out = capsys.readouterr().out
    assert "4 runs in" in out and "2 of them done" in out and "what a run says" not in out
    assert (tmp_path / "width=5-seed0" / "run.log").read_text() == "what a run says\n"
    assert "run 3 of 4: width=5-seed0: accuracy 50.00; " in out and " left\n" in out
    assert "width=4 │ 50.00 +- 25.00 │ -267.66 to 367.66 │ 2 │ 25.00, 75.00" in out and "(ddof = 0)" in out

    assert grid.conduct(*plan(**arguments, sweeps=("model.width=6",), baseline="width=5"), tmp_path) == 0
    assert runs[4:] == [f"width={row}-model.width=6-seed{seed}" for row in (4, 5) for seed in (0, 1)]
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert files == {"study.json", "study.html", "rows.png", "sweep-1.png", "sweep-2.png"}
    found = json.loads((tmp_path / "study.json").read_text())
    assert found["groups"][2]["label"] == "width=4, model.width=6"
    assert found["groups"][2]["runs"][1]["values"] == {"accuracy": 0.375}


def test_only_a_run_of_this_very_config_is_done(plan, runs, tmp_path):
    _, configs = plan(seeds=(0,))
    workdir = tmp_path / "tiny-seed0"
    workdir.mkdir()
    assert session.finished(configs["tiny-seed0"], workdir) is None
    session.run_one(configs["tiny-seed0"], workdir, progress=None)
    for override, same in (
        ("--config.data.dir=elsewhere", True),
        ("--config.checkpoint.keep_latest=5", True),
        ("--config.train.steps=8", False),
        ("--config.evaluation.batch_size=8", False),
        ("--config.model.mean=(0.5,)", False),
        ("--config.model.mean=()", True),  # which is to be measured, and was
    ):
        _, configs = plan(seeds=(0,), overrides=(override,))
        assert (session.finished(configs["tiny-seed0"], workdir) is not None) == same, override
    (workdir / session.FINISHED).write_text("{")
    assert session.finished(plan(seeds=(0,))[1]["tiny-seed0"], workdir) is None


def test_the_seconds_of_a_run_are_those_of_its_own_config(tmp_path):
    assert session.seconds_of(tmp_path, "a") == 0.0
    (tmp_path / session.FINISHED).write_text('{"config_hash": "a", "seconds": 2.5}')
    assert session.seconds_of(tmp_path, "a") == 2.5 and session.seconds_of(tmp_path, "b") == 0.0
    (tmp_path / session.FINISHED).write_text('{"config_hash": "a"}')
    assert session.seconds_of(tmp_path, "a") == 0.0


def test_a_run_that_diverges_is_told_of_and_the_others_go_on(plan, runs, tmp_path, monkeypatch, capsys):
    run_one = session.run_one

    def diverging(config, workdir, *, progress):
        if config.seed == 0:
            raise DivergedError("training diverged: loss is nan at step 3")
        return run_one(config, workdir, progress=progress)

    monkeypatch.setattr(session, "run_one", diverging)
    assert grid.conduct(*plan(), tmp_path) == 1
    shown = capsys.readouterr()
    assert shown.err == "tiny-seed0: training diverged: loss is nan at step 3\n"
    assert "run 1 of 2: tiny-seed0: diverged" in shown.out and re.search(r"tiny *│ *75.00 *│ *│ 1 │", shown.out)
    (group,) = json.loads((tmp_path / "study.json").read_text())["groups"]
    assert group["measures"]["accuracy"]["count"] == 1 and group["measures"]["accuracy"]["low"] is None
    assert [run["note"] != "" for run in group["runs"]] == [True, False]
    assert "training diverged" in (tmp_path / "study.html").read_text()


def test_what_cannot_be_is_said_at_once(plan, runs, tmp_path):
    with pytest.raises(InputError, match=r"^width=5-seed0: unknown suite 'acuracy'"):
        overrides = ("--config.evaluation.after_training=('acuracy',)",)
        grid.conduct(*plan(rows=("width=5",), overrides=overrides), tmp_path)
    with pytest.raises(InputError, match=r"^unknown measure 'acuracy': expected one of accuracy; did you mean"):
        grid.conduct(*plan(measures=("acuracy",)), tmp_path)
    assert runs == ["tiny-seed0"]  # after the first, not the last


def test_the_section_of_a_config_is_a_study(config_file, runs, tmp_path):
    section = {"rows": ("width=4",), "seeds": (1,)}  # as the override has made it
    assert grid.start(f"{config_file}:study", ["--config.study.seeds=(1,)"], section, str(tmp_path)) == 0
    assert runs == ["width=4-seed1"]
    with pytest.raises(InputError, match=r"unknown field of config.study 'row': expected one of rows, seeds"):
        grid.start(str(config_file), [], {"row": ("width=4",)}, str(tmp_path))


def test_real_runs_stopped_and_gone_on_with(config_file, tmp_path, monkeypatch, capsys):
    mesh, following = parallel.make_mesh(1), data.TrainBatches.__next__
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)

    def interrupted(batches):
        if batches.seed == 1 and batches.get_state()["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return following(batches)

    section, workdir = {"rows": ("width=4",), "seeds": (0, 1)}, tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(data.TrainBatches, "__next__", interrupted)
        assert grid.start(f"{config_file}:study", [], section, str(workdir)) == 130
    saved = (workdir / "width=4-seed0" / "finished.json").stat().st_mtime_ns
    seconds = json.loads((workdir / "width=4-seed0" / "finished.json").read_text())["seconds"]
    assert 0 < seconds < 600 and not (workdir / "width=4-seed1" / "finished.json").exists()
    assert grid.start(f"{config_file}:study", [], section, str(workdir)) == 0
    assert (workdir / "width=4-seed0" / "finished.json").stat().st_mtime_ns == saved
    log = (workdir / "width=4-seed1" / "run.log").read_text()
    assert "stopped and saved at step 3 of 4" in log and "resuming from step 3 of 4" in log
    (group,) = json.loads((workdir / "study.json").read_text())["groups"]
    for run in group["runs"]:
        record = json.loads((workdir / run["folder"] / "evaluation" / "accuracy.json").read_text())
        assert run["values"]["accuracy"] == record["metrics"]["accuracy"]["value"]
    assert "accuracy (%), mean +- standard deviation" in capsys.readouterr().out


def test_the_command(config_file, tmp_path):
    """Flags, in a process of its own: what is wrong is one line."""
    script = pathlib.Path(command.__file__).with_name("study.py")
    words = [sys.executable, str(script), f"--config={config_file}:study", "--seeds=0,1", "--config.seed=1"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --config.seed=1: a study sets the seed of every run")
