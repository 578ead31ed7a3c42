"""The command on the checkpoint of a run that was never trained."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import assembly
import evaluate
import jax
import pytest
from absl.testing import flagsaver

from configs import art_digits
from jrobust.errors import InputError
from jrobust.evaluation import Record, suites
from jrobust.training import run_folder
from jrobust.training.checkpoint import Checkpoints
from jrobust.training.state import TrainState
from tests import compilation

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs") / "natural")


def saved(folder, scale=1.0):
    """A run folder whose last layer is multiplied by `scale`."""
    config = art_digits.get_config("variant=natural,runlocal")
    parts = assembly.build(config)
    folder.mkdir()
    run_folder.write_json(folder / "config.json", config.to_dict())
    variables = parts.method.init(jax.random.key(0), {})
    variables = variables._replace(
        params={k: jax.tree.map(lambda v: v * scale, p) if k == "fc" else p for k, p in variables.params.items()}
    )
    checkpoints = Checkpoints(folder)
    checkpoints.save(TrainState(jax.numpy.int32(7), *variables, ()), {})
    checkpoints.close()
    return folder


def run(*arguments):
    command = [sys.executable, str(ROOT / "launch" / "evaluate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=compilation.environment(), check=False, cwd="/")


def test_evaluates_a_checkpoint_and_refreshes_the_report(workdir):
    done = run(
        f"--workdir={workdir}",
        "--suite=accuracy,robustness",
        "--suite.eps=4/255",
        "--suite.num_steps=2",
        "--suite.examples=20",
        "--suite.sweep_linf=",
        "--suite.sweep_l2=",
    )
    assert done.returncode == 0, done.stderr
    record = Record.read(workdir / "evaluation" / "robustness.json")
    assert (record.threat, record.step, record.examples, record.model) == ("Linf 4/255", 7, 20, "natural")
    assert record.settings["num_steps"] == [2] and record.curves == {}
    assert record.config_hash and record.dtype == "float32"
    for expected in ("PGD-2", "Linf 4/255", "step 7", "evaluation/robustness.json", "report/index.html"):
        assert expected in done.stdout.replace("\n", ""), expected
    assert "PGD-2" in (workdir / "report" / "index.html").read_text()


def test_a_model_that_hides_its_gradients_ends_in_status_1_after_all_is_written(tmp_path, capsys):
    folder = saved(tmp_path / "hidden", scale=1e6)
    words = {"radii": "", "iterations": "1", "unbounded_steps": "5", "queries": "20", "batch_size": "8"}
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workdir=str(folder), suite=["sanity"]):
        status = evaluate.main(words | {"examples": "16"})
    out, err = capsys.readouterr()
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith("sanity failed: ") and "an unbounded attack leaves nothing" in last
    assert "report/index.html" in out.replace("\n", "") and "failed" in out
    assert Record.read(folder / "evaluation" / "sanity.json").checks["unbounded_reaches_zero"] is False
    assert "unbounded attack" in (folder / "report" / "index.html").read_text()


def test_mistakes_are_one_line(workdir):
    done = run(f"--workdir={workdir}", "--suite=robustness", "--suite.epss=1")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "did you mean 'eps'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_overrides_take_the_type_of_the_field():
    words = {"eps": "4/255", "num_steps": "5,10", "sweep_l2": "1", "sweep_linf": "", "random_start": "false"}
    settings = suites.overridden(["robustness"], {"robustness": {"eps": "8/255", "restarts": 1}}, words)["robustness"]
    assert settings == {
        "eps": "4/255",
        "restarts": 1,
        "num_steps": (5, 10),
        "sweep_l2": ("1",),
        "sweep_linf": (),
        "random_start": False,
    }
    both = suites.overridden(["robustness", "attribution"], {}, {"num_steps": "5", "top_k": "3", "batch_size": "2"})
    assert both == {
        "robustness": {"num_steps": (5,), "batch_size": 2},
        "attribution": {"num_steps": 5, "top_k": 3, "batch_size": 2},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_stepss": "5"}, "unknown setting of robustness 'num_stepss'.*did you mean 'num_steps'"),
        ({"num_steps": "five"}, "expected a whole number"),
        ({"random_start": "maybe"}, "expected true or false"),
    ],
)
def test_overrides_that_fail(words, message):
    with pytest.raises(InputError, match=message):
        suites.overridden(["robustness"], {}, words)


def test_arguments_of_suites_are_taken_out():
    assert evaluate.split_overrides(["--workdir=a", "--suite=b", "--suite.eps=1/2", "--suite.sweep_l2="]) == (
        ["--workdir=a", "--suite=b"],
        {"eps": "1/2", "sweep_l2": ""},
    )
    with pytest.raises(InputError, match="has no value"):
        evaluate.split_overrides(["--suite.eps"])


def test_the_step_is_a_number_or_a_word(workdir):
    evaluate.flags.FLAGS.mark_as_parsed()
    with pytest.raises(InputError, match="no checkpoint of step newest"):
        evaluate.load(workdir, "newest")
    with pytest.raises(InputError, match="no checkpoint of step 8"):
        evaluate.load(workdir, "8")
    assert evaluate.load(workdir, "7")[1].step == 7
    assert json.loads((workdir / "config.json").read_text())["data"]["name"] == "digits"
