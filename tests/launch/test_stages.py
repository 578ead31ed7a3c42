"""JTT's two stages: what is wrong is found, kept, read back and repeated, wherever the process ends."""

import json
import os
import shutil
import signal
import types

import assembly
import jax
import numpy as np
import pytest
import session
import stages

from jrobust import data
from jrobust.data.source import from_arrays
from jrobust.errors import InputError
from jrobust.training import checkpoint, loop, parallel, run_folder

JTT = "method=jtt"
BIASADV = {
    **{"debiased_weight": 1.0, "adv_weight": 1.0, "eps": "0.3", "num_steps": 1, "step_size": "2/255"},
    **{"norm": "linf", "space": "pixel", "random_start": False, "batch_norm": "eval", "auxiliary_norm": True},
    **{"attack_norm": "auxiliary", "objective": "biasadv"},
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    mesh = parallel.make_mesh(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_mesh", lambda: mesh)
        yield


@pytest.fixture(scope="module")
def repeated():
    """The rows of every upsampled set, the newest last."""
    rows, repeat = [], data.repeated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "repeated", lambda source, index: rows.append(np.asarray(index)) or repeat(source, index))
        yield rows


@pytest.fixture(scope="module")
def uninterrupted(read, repeated, tmp_path_factory):
    """The folder of a run that nothing interrupted, and the rows of its second stage; to be left as it is."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert session.run_one(read(JTT), workdir).failures == []
    return workdir, repeated[-1]


@pytest.fixture
def whole(uninterrupted, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(uninterrupted[0], tmp_path / "whole")


def error_set(workdir):
    with np.load(workdir / stages.ARRAY) as archive:
        return archive["wrong"], json.loads((workdir / stages.RECORD).read_text())


def first_network(workdir):
    """The network that the first stage has trained."""
    parts, shapes = assembly.reopen(workdir / stages.FOLDER)
    variables, step = checkpoint.restore_variables(workdir / stages.FOLDER, "latest", shapes)
    return parts, variables, step


def test_the_error_set_is_what_the_last_network_of_the_first_stage_gets_wrong(read, uninterrupted):
    whole, rows = uninterrupted
    wrong, record = error_set(whole)
    parts, variables, step = first_network(whole)
    arrays = parts.train.arrays()
    logits = parts.method.logits(parts.method.deployed(variables), arrays["image"].astype(np.float32) / 255)
    np.testing.assert_array_equal(wrong, np.asarray(logits).argmax(-1) != arrays["label"])
    assert 0 < wrong.sum() < len(wrong) == 1437
    assert (record["count"], record["examples"], record["step"]) == (wrong.sum(), 1437, step) and step == 4

    np.testing.assert_array_equal(np.bincount(rows), np.where(wrong, 3, 1))
    config = assembly.read_config(whole)
    first = assembly.read_config(whole / stages.FOLDER)
    assert first.method.name == "identification" and first.seed != config.seed and "jtt" not in first
    assert not (whole / stages.FOLDER / "evaluation").exists() and (whole / "evaluation" / "accuracy.json").exists()
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == round(4 / (len(rows) // 128), 4)  # an epoch is one pass over the upsampled set


def test_ended_at_any_point_and_started_again_is_the_same_run(read, whole, trained, tmp_path, monkeypatch):
    workdir, following, write_json = tmp_path / "run", data.TrainBatches.__next__, run_folder.write_json

    class EndedError(Exception):
        pass

    def at(step, action):
        def interrupted(batches):
            if batches.get_state()["step"] == step:
                action()
            return following(batches)

        monkeypatch.setattr(data.TrainBatches, "__next__", interrupted)

    def end():
        raise EndedError

    at(2, end)  # in the first stage, about when its checkpoint is written
    with pytest.raises(EndedError):
        session.run_one(read(JTT), workdir)
    assert (workdir / stages.FOLDER).exists() and not (workdir / "config.json").exists()

    at(2, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the first stage
    assert session.run_one(read(JTT), workdir).signal == signal.SIGTERM
    assert checkpoint.saved_steps(workdir / stages.FOLDER)[-1] == 3 and not (workdir / stages.ARRAY).exists()

    at(99, end)  # between the two files of the error set
    monkeypatch.setattr(run_folder, "write_json", lambda p, c: end() if p.name == stages.RECORD else write_json(p, c))
    with pytest.raises(EndedError):
        session.run_one(read(JTT), workdir)
    monkeypatch.setattr(run_folder, "write_json", write_json)
    assert (workdir / stages.ARRAY).exists() and not (workdir / stages.RECORD).exists()

    at(2, lambda: os.kill(os.getpid(), signal.SIGTERM))  # in the second stage
    assert session.run_one(read(JTT), workdir).signal == signal.SIGTERM
    assert checkpoint.saved_steps(workdir)[-1] < 4 and session.finished(read(JTT), workdir) is None

    at(99, end)
    assert session.run_one(read(JTT), workdir).signal is None
    assert trained(workdir) == trained(whole)
    assert trained(workdir / stages.FOLDER) == trained(whole / stages.FOLDER)
    assert error_set(workdir)[1] == error_set(whole)[1]
    assert session.finished(read(JTT), workdir).failures == []


def test_the_second_stage_is_repeated_alone(read, whole, trained, monkeypatch):
    before = trained(whole)
    for name in ("checkpoints", f"{stages.FOLDER}/checkpoints"):
        shutil.rmtree(whole / name)
    for name in ("config.json", "metrics.jsonl"):
        (whole / name).unlink()
    folders, train = [], loop.train

    def noted(method, config, workdir, **arguments):
        folders.append(workdir)
        return train(method, config, workdir, **arguments)

    monkeypatch.setattr(loop, "train", noted)
    session.run_one(read(JTT), whole)
    assert folders == [whole] and trained(whole) == before
    # Other numbers of the second stage go with the same error set.
    parts = assembly.build(read(JTT, "--config.jtt.copies=4", "--config.jtt.count=extra"))
    stage = stages.first(parts)
    errors = stages.read(stage, parts, whole)
    assert len(stages.second(stage, parts, errors, whole, None)[0].train) == 1437 + 4 * errors.wrong.sum()


@pytest.mark.parametrize("damage", ["bytes", "array", "format", "missing"])
def test_a_damaged_error_set_is_named(read, whole, damage):
    wrong, record = error_set(whole)
    if damage == "bytes":
        (whole / stages.ARRAY).write_bytes((whole / stages.ARRAY).read_bytes()[:40])
    elif damage == "array":
        np.savez(whole / stages.ARRAY, wrong=~wrong)
    elif damage == "format":
        (whole / stages.RECORD).write_text(json.dumps(record | {"format": 0}))
    else:
        (whole / stages.ARRAY).unlink()
    with pytest.raises(InputError, match=r"error set in .*whole is damaged.*: delete .*error_set.json and"):
        session.run_one(read(JTT), whole)


def test_an_error_set_of_other_settings_is_named(read, whole):
    (whole / "config.json").unlink()  # as if the second stage had not begun
    for override, text in (
        ("--config.jtt.epochs=0.5", r"identification.train.epochs is 0.4 there and 0.5 here"),
        ("--config.jtt.error_set=online", r"error_set is 'eval_pass' there and 'online' here"),
        ("--config.optimizer.learning_rate=0.2", r"identification.optimizer.learning_rate is 0.1 there"),
        ("--config.seed=1", r"identification.seed is"),
    ):
        with pytest.raises(InputError, match=rf"made with other settings: .*{text}.*delete .* and .*identification"):
            session.run_one(read(JTT, override), whole)
    parts = assembly.build(read(JTT))
    fewer = parts._replace(train=data.repeated(parts.train, np.arange(9)))
    with pytest.raises(InputError, match=r"is of 1437 training images, and here are 9"):
        stages.read(stages.first(parts), fewer, whole)
    (whole / stages.RECORD).unlink()
    with pytest.raises(InputError, match=r"has checkpoints of the second stage but not error_set.json"):
        session.run_one(read(JTT), whole)


def test_online_takes_the_predictions_of_training(read, uninterrupted, tmp_path):
    parts = assembly.build(read(JTT, "--config.jtt.error_set=online"))
    stage, (_, variables, _) = stages.first(parts), first_network(uninterrupted[0])
    summary = types.SimpleNamespace(train_state=types.SimpleNamespace(variables=variables), step=3)
    stages.write(stage, parts, summary, tmp_path)
    found = stages.read(stage, parts, tmp_path)
    np.testing.assert_array_equal(found.wrong, variables.state["wrong"])
    assert 0 < found.wrong.sum() <= 4 * 128  # no more than were seen
    np.testing.assert_array_equal(stages.read(stage, parts, tmp_path).wrong, found.wrong)


def test_an_empty_error_set_is_warned_of_and_changes_nothing(read, tmp_path):
    parts = assembly.build(read(JTT))
    empty = stages.ErrorSet(np.zeros(len(parts.train), bool), 3, None)
    with pytest.warns(UserWarning, match="error set is empty"):
        second, initialize = stages.second(stages.first(parts), parts, empty, tmp_path, None)
    assert len(second.train) == len(parts.train) and initialize is None
    np.testing.assert_array_equal(second.train.labels, parts.train.labels)


def test_biasadv_gets_the_first_network_frozen(read, whole, tmp_path):
    config = read(JTT).copy_and_resolve_references().unlock()
    config.method = {"name": "jtt", "biasadv": BIASADV}
    parts = assembly.build(config)
    stage = stages.first(parts)
    errors = stages.read(stage, parts, whole)
    _, initialize = stages.second(stage, parts, errors, whole, None)
    found = initialize(jax.random.key(0), {})
    method, trained, _ = first_network(whole)
    phi = method.method.deployed(trained)
    fresh = parts.method.init(jax.random.key(0), {})
    for left, right in zip(jax.tree.leaves(parts.method.base.biased(found)), jax.tree.leaves(phi), strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(jax.tree.leaves(found.params), jax.tree.leaves(fresh.params), strict=True):
        np.testing.assert_array_equal(left, right)
    assert jax.tree.structure(found) == jax.tree.structure(fresh)
    parts.config.unlock()
    del parts.config.jtt
    with pytest.raises(InputError, match="method 'jtt' is a second stage: set the section jtt"):
        stages.first(parts)


def test_mistakes_are_found_before_the_first_stage(read, tmp_path):
    for override, text in (
        ("--config.jtt.count=all", "unknown jtt.count 'all': expected one of total, extra"),
        ("--config.jtt.error_set=x", "unknown jtt.error_set 'x'"),
        ("--config.jtt.copies=0", "jtt.copies is 0"),
        ("--config.jtt.epochs=0", "jtt.epochs is 0"),
    ):
        with pytest.raises(InputError, match=text):
            session.run_one(read(JTT, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_conflicting_images_are_counted_where_biases_are_known():
    labels, biases = [0, 0, 1, 1], [0, 1, 0, 1]
    source = from_arrays(np.zeros((4, 2, 2, 3)), labels, biases=biases)
    wrong = np.array([True, True, False, False])
    found = stages.ErrorSet(wrong, 1, stages._conflicting(wrong, source))
    assert found.text().endswith("2 of 4 training images (50.00%); of the 2 bias-conflicting ones 1 are in it")
