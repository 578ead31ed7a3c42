"""Averages of the models of runs, from the command: what is written, what is said, and what is refused."""

import json
import shutil

import assembly
import evaluate
import exporting
import ingredients
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import session
import soup
from safetensors.numpy import load_file

from jrobust import data
from jrobust.errors import InputError
from jrobust.replicated import Replicated
from jrobust.training import checkpoint, run_folder
from jrobust.training.state import TrainState


@pytest.fixture(scope="module")
def root(read, tmp_path_factory):
    """Runs `start`, and `a` and `b` that began with its weights, as if trained; to be left as they are."""
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 10), ("validation", 60), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(root / "own.npz", **arrays)
    np.savez(root / "two.npz", **{name: array for name, array in arrays.items() if "validation" not in name})
    first = (f"--config.model.weights={root / 'start' / session.EXPORTED}",)
    for name, seed, words, more in (
        ("start", 0, "", ()),
        ("a", 1, "", first),
        ("b", 2, "", first),
        ("wide", 3, "width=5", ()),
    ):
        config = read(words, f"--config.data.name=npz:{root / 'own.npz'}", f"--config.seed={seed}", *more)
        parts = assembly.build(config)
        variables = parts.method.init(jax.random.key(seed), {})
        checkpoints = checkpoint.Checkpoints(root / name)
        checkpoints.save(TrainState(np.int32(4), *variables, {"unused": jnp.zeros(1)}), {})
        checkpoints.close()
        run_folder.write_json(root / name / "config.json", config.to_dict())
        exporting.weights(parts, variables, 4, root / name / session.EXPORTED)
    return root


@pytest.fixture
def call(root, tmp_path, capsys):
    """Return the arrays, the record and the text of the command with these flags; names are of the runs above."""

    def call(**given):
        output = tmp_path / "soup.safetensors"
        for kind in ("runs", "files"):
            given[kind] = [str(root / name) for name in given.get(kind, [])]
        soup.main(soup.Options(str(output), **given))
        record = json.loads((tmp_path / "soup.safetensors.json").read_text())["extra"]
        return load_file(output), record, capsys.readouterr()

    return call


def exported(root, name):
    return load_file(root / name / session.EXPORTED)


def test_uniform(root, call, tmp_path):
    found, record, text = call(runs=["a", "b"])
    ours = [exported(root, name) for name in "ab"]
    assert set(found) == set(ours[0]) and not np.array_equal(ours[0]["params/fc/kernel"], ours[1]["params/fc/kernel"])
    for name, array in found.items():
        np.testing.assert_allclose(array, (ours[0][name] + ours[1][name]) / 2, atol=1e-7)
    made = record["soup"]
    assert (made["kind"], made["split"], record["step"]) == ("uniform", "validation", None)
    assert [(one["name"], one["seed"], one["step"]) for one in made["ingredients"]] == [
        (str(root / "a"), 1, 4),
        (str(root / "b"), 2, 4),
    ]
    assert made["ingredients"][0]["parameters_sha256"] != made["ingredients"][1]["parameters_sha256"]
    assert "validation split" in text.out and "the average" in text.out and text.err == ""
    evaluate.flags.FLAGS.mark_as_parsed()
    _, subject = evaluate.load(root / "a", "latest", str(tmp_path / "soup.safetensors"))
    np.testing.assert_array_equal(subject.variables.params["fc"]["kernel"], found["params/fc/kernel"])
    assert subject.note == ""


def test_greedy_measures_and_orders(root, call, monkeypatch, tmp_path):
    """b is the better one alone, and a makes it no better."""
    table = {"a": 0.4, "b": 0.7, "mean": 0.7}
    kernels = {name: exported(root, name)["params/fc/kernel"] for name in "ab"}

    def accuracy(pot, params):
        same = [name for name in "ab" if np.array_equal(kernels[name], params["fc"]["kernel"])]
        return table[same[0] if same else "mean"]

    monkeypatch.setattr(soup.Pot, "accuracy", accuracy)
    found, record, text = call(runs=["a", "b"], kind="greedy", split="test")
    rows = [(one["name"][-1], one["accuracy"], one["together"], one["taken"]) for one in record["soup"]["ingredients"]]
    assert rows == [("b", 0.7, 0.7, True), ("a", 0.4, 0.7, False)] and record["soup"]["accuracy"] == 0.7
    np.testing.assert_array_equal(found["params/fc/kernel"], kernels["b"])
    evaluate.flags.FLAGS.mark_as_parsed()
    assert evaluate.load(root / "a", "latest", str(tmp_path / "soup.safetensors"))[1].note == record["chosen"]
    assert "an oracle" in record["chosen"] and "warning: a greedy soup by accuracy on the test split" in text.err
    table["mean"] = 0.71
    found, record, _ = call(runs=["a", "b"], kind="greedy")
    assert [one["taken"] for one in record["soup"]["ingredients"]] == [True, True] and "chosen" not in record
    np.testing.assert_allclose(found["params/fc/kernel"], (kernels["a"] + kernels["b"]) / 2, atol=1e-7)


def test_wise(root, call):
    start, tuned = (exported(root, name) for name in ("start", "a"))
    for share, wanted in ((0.0, start), (1.0, tuned)):
        found, _, _ = call(runs=["a"], kind="wise", share=share, split="none")
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    between, record, _ = call(runs=["a"], kind="wise", share=0.25, split="none")
    name = "params/fc/kernel"
    np.testing.assert_allclose(between[name], 0.75 * start[name] + 0.25 * tuned[name], atol=1e-7)
    assert record["soup"]["share"] == 0.25 and record["soup"]["ingredients"][0]["name"] == soup.ORIGINAL
    of_files, record, _ = call(
        files=[f"{name}/{session.EXPORTED}" for name in ("start", "a")],
        kind="wise",
        share=0.25,
        workdir=str(root / "b"),
    )
    np.testing.assert_array_equal(of_files[name], between[name])
    assert all(len(one["sha256"]) == 64 and 0 <= one["accuracy"] <= 1 for one in record["soup"]["ingredients"])


def test_the_accuracy_is_that_of_the_split(root, call):
    """Of the validation images, and of the average."""
    _, record, _ = call(files=[f"a/{session.EXPORTED}"], workdir=str(root / "a"))
    evaluate.flags.FLAGS.mark_as_parsed()
    _, subject = evaluate.load(root / "a", "latest")
    with np.load(root / "own.npz") as arrays:
        images, labels = arrays["validation_images"] / np.float32(255), arrays["validation_labels"]
    right = np.argmax(subject.logits(subject.variables, images), 1) == labels
    assert record["soup"]["accuracy"] == record["soup"]["ingredients"][0]["accuracy"] == pytest.approx(right.mean())


def test_images_that_training_held_out(root, call, tmp_path):
    """Accuracy is on those of the first run; another draw is of images that it was trained on."""
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        changed(root, tmp_path / name, "data", name="digits", held_out=100, held_out_seed=seed)
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    _, record, text = call(runs=[one, same], kind="greedy")
    evaluate.flags.FLAGS.mark_as_parsed()
    parts, subject = evaluate.load(one, "latest")
    images = data.held_out(data.load("digits", "train"), 100, 0).validation.arrays()
    right = np.argmax(subject.logits(subject.variables, images["image"] / np.float32(255)), 1) == images["label"]
    assert record["soup"]["ingredients"][0]["accuracy"] == pytest.approx(right.mean()) and text.err == ""
    assert record["soup"]["ingredients"][0]["held_out"] == {"images": 100, "seed": 0} and len(parts.train) == 1337
    _, _, text = call(runs=[one, other])
    assert f"warning: {other} was trained on images of the validation split, for it holds out others" in text.err
    with pytest.raises(InputError, match=r"train all runs of a greedy soup with one data.held_out_seed"):
        call(runs=[one, other], kind="greedy")
    assert call(runs=[one, other], kind="greedy", split="test")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runs": ["a", "wide"]}, r"wide is of another model \(model.width is 5 there and 4 here\): average equal"),
        ({"runs": ["a"], "files": [f"wide/{session.EXPORTED}"]}, r"model.width is 5 there and 4 here"),
        ({"runs": ["a", "a"]}, "is named twice"),
        ({"runs": ["a", "b"], "kind": "wise"}, "2 runs and 0 files are not that"),
        ({"runs": ["start"], "kind": "wise"}, "this run began at random"),
        ({"runs": ["a"], "kind": "wise", "share": 2.0}, "--share is 2: expected a number from 0"),
        ({"runs": ["a"], "kind": "best"}, "unknown --kind 'best'"),
        ({"runs": ["a"], "kind": "greedy", "split": "none"}, "measures nothing"),
        ({"files": ["a"]}, "there is no run"),
        ({"runs": ["a"], "files": ["none.safetensors"]}, "none.safetensors cannot be read"),
    ],
)
def test_what_is_refused(call, flags, message):
    with pytest.raises(InputError, match=message):
        call(**flags)


def changed(root, target, section, **values):
    """Copy run `b` with other settings in its config."""
    shutil.copytree(root / "b", target)
    config = json.loads((target / "config.json").read_text())
    config[section] |= values
    (target / "config.json").write_text(json.dumps(config))


def test_other_classes_and_preprocessing(root, call, tmp_path):
    changed(root, tmp_path / "mean", "model", mean=[0.5])
    with pytest.raises(InputError, match=r"mean has the mean \(0.5,\), not \(0.0,\): average models of equal prep"):
        call(runs=["a", tmp_path / "mean"])
    changed(root, tmp_path / "few", "data", name=f"npz:{root / 'two.npz'}")
    with pytest.raises(InputError, match="with --split=test the choice is an oracle"):
        call(runs=[tmp_path / "few"])


def test_batch_statistics_that_differ():
    stats = {"bn1": {"mean": np.zeros(3), "var": np.ones(3)}}
    ingredients.check_state("b", jax.tree.map(np.copy, stats), stats)
    with pytest.raises(InputError, match=r"b has other batch statistics \(bn1/mean\).*average networks without batch"):
        ingredients.check_state("b", {"bn1": {"mean": np.full(3, 1e-6), "var": np.ones(3)}}, stats)


def test_texts_of_another_device_and_of_others():
    def state(text, scale):
        return {"text": Replicated(np.full((2, 3), text)), "logit_scale": Replicated(np.float32(scale))}

    ingredients.check_state("b", state(0.5004, 4.6), state(0.5, 4.6))
    for path, other in (("text", state(0.51, 4.6)), ("logit_scale", state(0.5, 4.6001))):
        with pytest.raises(InputError, match=f"b has another {path} than the first model, and it is not trained"):
            ingredients.check_state("b", other, state(0.5, 4.6))
