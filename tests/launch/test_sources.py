"""The splits of a config's data set, and what runs of earlier versions say of them."""

import assembly
import numpy as np
import pytest
import session
import sources

from jrobust import data
from jrobust.errors import InputError
from jrobust.training import parallel, run_folder
from jrobust.training.progress import Progress


def test_validation_is_a_part_of_the_training_set(read):
    """Of one draw for every method of a seed; `data.held_out_seed` takes the place of the run's."""
    words = ("--config.data.held_out=100", "--config.train.evaluate_split=validation")
    parts = assembly.build(read("", *words, "--config.seed=3"))
    assert (len(parts.train), len(parts.held_out), len(parts.test)) == (1337, 100, 360)
    assert parts.train.split == "train" and parts.held_out.split == "validation" and parts.method.classifier
    same = assembly.build(read("width=5", *words, "--config.data.held_out_seed=3"))
    other = assembly.build(read("", *words))
    np.testing.assert_array_equal(same.held_out.rows, parts.held_out.rows)
    assert set(other.held_out.rows) != set(parts.held_out.rows)
    balanced = assembly.build(read("", *words, "--config.data.balance_to=150"))  # of what is left
    assert len(balanced.train) == 1500 and len(balanced.held_out) == 100


def test_without_it_nothing_is_held_out_and_folders_of_earlier_versions_are_the_same(read, tmp_path):
    config = read()
    assert len(sources.source(config, "train")) == 1437
    with pytest.raises(InputError, match="unknown split of digits 'validation'"):
        sources.source(config, "validation")
    earlier = config.to_dict()
    for name in ("held_out", "held_out_seed"):
        del earlier["data"][name]
    run_folder.write_json(tmp_path / "config.json", earlier)
    run_folder.check_config(tmp_path, config.to_dict())
    reopened = assembly.read_config(tmp_path)
    assert sources.held_out_draw(reopened) is None and len(assembly.build(reopened.copy_and_resolve_references()).train)
    with pytest.raises(InputError, match=r"data.held_out is 0 there and 100 here"):
        run_folder.check_config(tmp_path, read("", "--config.data.held_out=100").to_dict())


def test_a_run_chooses_by_the_images_that_it_holds_out(read, tmp_path):
    words = ("--config.data.held_out=100", "--config.train.evaluate_split=validation", "--config.evaluation.step=best")
    parts = assembly.build(read("", *words, "--config.train.evaluate_examples=0"))
    summary = session.train(parts, tmp_path, parallel.make_mesh(), None, Progress)
    images = data.held_out(data.load("digits", "train"), 100, seed=0).validation.arrays()
    variables, step, _ = session.chosen(parts, summary, tmp_path)
    right = np.argmax(parts.method.logits(variables, images["image"] / np.float32(255)), 1) == images["label"]
    assert step == 4 and summary.metrics == {"validation_accuracy": pytest.approx(right.mean())}
