"""Which checkpoint a run evaluates and exports, and that it says how that was chosen."""

import json

import assembly
import numpy as np
import pytest
import session
from safetensors import safe_open

from jrobust.errors import InputError
from jrobust.training import loop, parallel, run_folder


@pytest.fixture
def settings(read, tmp_path, monkeypatch):
    """Return a config whose best checkpoint is that of step 2 of 4, measured on a split."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 256), ("validation", 20), ("test", 30)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(tmp_path / "own.npz", **arrays)
    mesh, measured = parallel.make_mesh(1), []
    monkeypatch.setattr(parallel, "make_mesh", lambda: mesh)

    def make_accuracy(logits, mesh):
        def accuracy(variables, batches):
            measured.append(sum(int(batch["valid"].sum()) for batch in batches))
            return 0.9 if len(measured) == 1 else 0.2

        return accuracy

    monkeypatch.setattr(loop, "make_accuracy", make_accuracy)

    def settings(split):
        own = (f"--config.data.name=npz:{tmp_path / 'own.npz'}", "--config.train.batch_size=64")
        often = ("--config.train.evaluate_every_epochs=0.5", "--config.train.evaluate_examples=0")
        chosen = (f"--config.train.evaluate_split={split}", "--config.evaluation.step=best")
        return read("", *own, *often, *chosen), measured

    return settings


@pytest.mark.parametrize("split, size", [("validation", 20), ("test", 30)])
def test_the_best_checkpoint_says_on_which_split_it_was_chosen(settings, split, size, tmp_path, capsys):
    (config, measured), workdir = settings(split), tmp_path / "run"
    session.run_one(config, workdir)
    assert measured == [size, size]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row[f"{split}_accuracy"] for row in rows if f"{split}_accuracy" in row] == [0.9, 0.2]
    record = json.loads((workdir / "evaluation" / "accuracy.json").read_text())
    assert record["step"] == 2 and record["examples"] == 30 and record["dataset"].endswith(" test")
    with safe_open(workdir / session.EXPORTED, "np") as file:
        manifest = json.dumps(file.metadata())
    shown = capsys.readouterr()
    assert f"step 2/4: {split} accuracy 90.00%" in shown.out
    assert f"best checkpoint by accuracy on the {split} split" in manifest
    oracle = split == "test"
    assert any("an oracle" in text for text in record["warnings"]) == oracle
    assert ("an oracle" in manifest) == oracle and ("an oracle" in shown.out) == oracle
    assert ("warning: accuracy: the best checkpoint" in shown.err) == oracle


def test_splits_and_steps_that_are_not_there(read):
    for override, message in (
        ("train.evaluate_split=validation", "unknown split of digits 'validation'"),
        ("train.evaluate_split=train", "unknown train.evaluate_split 'train': expected one of test, validation"),
        ("evaluation.step=first", r"unknown evaluation.step 'first': expected one of latest, best"),
    ):
        with pytest.raises(InputError, match=message):
            assembly.build(read("", f"--config.{override}"))


def test_the_defaults_of_new_fields_are_what_earlier_versions_did(read):
    own = run_folder.flat(read().to_dict())
    assert {key: own[key] for key in run_folder.ADDED} == run_folder.ADDED
