"""A CLIP that is trained first, once for the runs that share it, and models before any training."""

import shutil
import signal
import types

import assembly
import beginning
import command
import evaluate
import exporting
import jax
import numpy as np
import pretraining
import pytest
import session
import untrained
from absl.testing import flagsaver

from jrobust.errors import InputError
from jrobust.evaluation.record import Record, config_hash
from jrobust.training import checkpoint, loop, parallel
from jrobust.weights import clip_layouts

CONFIG = """
from configs import clip_shapes, common

SIZES = {"embed_dim": 8, "image_size": 8, "image_width": 8, "image_layers": 1, "image_heads": 1, "patch": 8}
SIZES |= {"text_width": 8, "text_layers": 1, "text_heads": 1}


def section(method):
    config = common.base()
    config.data.name = "shapes"
    config.data.options = {"task": "shape", "size": 64, "ratio": 8.0, "seed": 0}
    config.method = {"name": method}
    config.train.update({"batch_size": 32, "steps": 3, "log_every_steps": 3, "evaluate_examples": 32})
    config.train.evaluate_every_epochs = 0.0
    config.checkpoint.every_steps = 2
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 1})
    config.evaluation.update({"batch_size": 32, "after_training": ()})
    return config


def get_config(argument=""):
    config = section("standard")
    config.model = clip_shapes.model()
    config.model.sizes.update(SIZES)
    config.pretrain = section("contrastive")
    del config.pretrain.seed
    config.pretrain.data.captions = 2
    return config
"""


@pytest.fixture(scope="module", autouse=True)
def one_device():
    mesh = parallel.make_mesh(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_mesh", lambda: mesh)
        yield


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny_clip.py"
    path.write_text(CONFIG)
    return lambda *overrides: command.read_config(str(path), overrides)


@pytest.fixture(scope="module")
def runs(read, tmp_path_factory):
    """A folder with a run whose rate is 0, and its first stage; to be left as it is."""
    root = tmp_path_factory.mktemp("runs")
    assert session.run_one(read("--config.optimizer.learning_rate=0.0"), root / "run").failures == []
    return root


@pytest.fixture
def copy(runs, tmp_path):
    """That folder in another place."""
    return shutil.copytree(runs, tmp_path / "moved")


def same(ours, theirs):
    leaves = (jax.tree.leaves(ours), jax.tree.leaves(theirs))
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def towers(stage):
    """Both towers as they are in the file of a first stage."""
    clip = assembly.build(assembly.read_config(stage)).classifier.clip
    return clip_layouts.load(stage / pretraining.WEIGHTS, clip)


@pytest.fixture
def calls(monkeypatch):
    """The folders of trainings that end as soon as they begin."""
    folders = []

    def train(parts, workdir, *rest):
        folders.append(workdir.name)
        return loop.Summary(1, 3, None, {}, 0, 0, 0.0, 0.0, signal=signal.SIGTERM)

    monkeypatch.setattr(session, "train", train)
    return folders


def test_the_run_begins_with_the_last_weights_of_the_first_stage(read, runs):
    stage = pretraining.folder(read(), runs / "run")
    assert sorted(path.name for path in runs.iterdir()) == [stage.name, "run"]
    config = assembly.read_config(stage)
    assert (config.method.name, config.data.captions, config.seed, "pretrain" in config) == ("contrastive", 2, 0, False)
    last, step = checkpoint.restore_variables(stage)
    assert step == 3 and same(last.params, towers(stage))
    fine_tuned, step = checkpoint.restore_variables(runs / "run")
    assert step == 3 and same(fine_tuned.params, towers(stage)["image"])


def test_the_first_stage_is_a_run_like_others(read, copy):
    """It can be gone on with by itself, and then exports the same file."""
    stage = pretraining.folder(read(), copy / "run")
    assert session.run_one(pretraining.stage(read()), stage).failures == []
    assert (stage / session.TOWERS).read_bytes() == (stage / pretraining.WEIGHTS).read_bytes()


def test_contrastive_training_may_begin_with_a_file(read, runs):
    stage = pretraining.folder(read(), runs / "run")
    config = assembly.read_config(stage)
    assert beginning.first_variables(assembly.build(config)) is None
    config.model.weights = str(stage / pretraining.WEIGHTS)
    assert same(beginning.first_variables(assembly.build(config))(None, {}).params, towers(stage))


def test_a_sibling_trains_nothing_first(read, copy, calls):
    assert session.run_one(read("--config.train.steps=9"), copy / "sibling").signal == signal.SIGTERM
    assert calls == ["sibling"]


def test_a_first_stage_that_is_interrupted_ends_the_run(read, tmp_path, calls):
    assert session.run_one(read(), tmp_path / "run").signal == signal.SIGTERM
    stage = pretraining.folder(read(), tmp_path / "run")
    assert calls == [stage.name] and not pretraining.done(stage) and not (tmp_path / "run").exists()


def test_a_folder_that_has_moved_is_found_again(copy):
    parts, _, _ = assembly.restore(copy / "run")
    assert parts.texts.weights == str(pretraining.folder(parts.config, copy / "run") / pretraining.WEIGHTS)
    assert parts.texts.weights.startswith(str(copy)) and parts.config.model.weights == ""
    assert same(parts.texts.params, towers(copy / pretraining.folder(parts.config, copy / "run").name))


def test_what_decides_the_weights_is_in_the_name_of_the_folder(read, tmp_path):
    def name(*overrides):
        return pretraining.folder(read(*overrides), tmp_path / "run").name

    own = name()
    for same in (
        "optimizer.learning_rate=0.5",
        "train.steps=9",
        "data.options.task=color",
        "pretrain.checkpoint.every_steps=1",
    ):
        assert name(f"--config.{same}") == own
    for other in (
        "seed=1",
        "pretrain.train.steps=4",
        "pretrain.train.microbatches=2",
        "pretrain.data.options.size=128",
        "model.sizes.patch=4",
        "pretrain.optimizer.warmup_steps=2",
    ):
        assert name(f"--config.{other}") != own
    saved = tmp_path / "run"
    saved.mkdir()
    (saved / "config.json").write_text(read().to_json())
    assert pretraining.folder(assembly.read_config(saved), saved).name == own  # as it comes back from JSON
    fixed = read()
    with fixed.unlocked():
        fixed.pretrain.seed = 0
    for seed in (0, 7):
        fixed.seed = seed
        assert pretraining.folder(fixed, saved).name == own
    with fixed.unlocked():
        fixed.model.update({"head": "linear", "teacher": "FILE"})
    assert pretraining.folder(fixed, saved).name == own  # of the run alone
    with fixed.unlocked():
        del fixed.pretrain.train.microbatches
    assert pretraining.folder(fixed, saved).name == own  # of a run from before there were any


def test_damage_is_one_line(read, copy, monkeypatch):
    def interrupted(config, workdir):
        raise KeyboardInterrupt

    stage = pretraining.folder(read(), copy / "run")
    file = stage / pretraining.WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"clip.safetensors is not as it was written: put it back, or delete"):
        pretraining.done(stage)
    for opened in (assembly.reopen, lambda run: session.run_one(read("--config.optimizer.learning_rate=0.0"), run)):
        with pytest.raises(InputError, match=r"is not the file that .*run was fine-tuned from"):
            opened(copy / "run")
    (stage / pretraining.RECORD).unlink()
    monkeypatch.setattr(pretraining, "note", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.run_one(read(), copy / "other")  # written again from the last checkpoint
    assert file.read_bytes() == content
    (stage / pretraining.RECORD).write_text("{}")
    with pytest.raises(InputError, match=r"pretrained.json is damaged or of something else"):
        pretraining.done(stage)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pretrain.train": None}, "config.pretrain lacks train: it has the sections of a config of its own"),
        ({"pretrain.trian": {}}, "unknown section of config.pretrain 'trian'.*did you mean 'train'"),
        ({"model.weights": "x.pt"}, "config.pretrain trains the weights of a CLIP: got .*'x.pt'"),
        ({"model.name": "mlp"}, "config.pretrain trains the weights of a CLIP: got model.name 'mlp'"),
        ({"model.mean": ()}, "config.pretrain needs model.mean and model.std"),
        ({"pretrain.method.name": "standard"}, "config.pretrain.method is 'standard': expected 'contrastive'"),
    ],
)
def test_sections_that_cannot_be(read, change, message):
    config = read().unlock()
    for key, value in change.items():
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        if value is None:
            del section[last]
        else:
            section[last] = value
    with pytest.raises(InputError, match=message):
        pretraining.stage(config)


def test_a_model_before_training(read, runs, copy):
    """What is evaluated is what training would begin with, and its folder is that of no run."""
    parts, variables = untrained.build(read(), copy / "before")
    begun = beginning.first_variables(parts)(jax.random.key(0), {})
    assert same(variables, parts.method.deployed(begun))
    assert same(variables.params, towers(pretraining.folder(read(), copy / "run"))["image"])
    untrained.record(parts.config, copy / "before")
    assert untrained.build(read(), copy / "before")[0].config.seed == 0
    with pytest.raises(InputError, match=r"before holds a run with another config: optimizer.nesterov"):
        untrained.build(read("--config.optimizer.nesterov=False"), copy / "before")
    with pytest.raises(InputError, match=r"run is the folder of a trained run: leave --config out"):
        untrained.build(read(), copy / "run")
    with pytest.raises(InputError, match=r"clip.safetensors is not there: train it first, with launch/run.py"):
        untrained.build(read("--config.seed=1"), copy / "before")


def test_the_command_evaluates_a_model_before_training(read, copy, monkeypatch):
    monkeypatch.setattr(command, "FLAGS", {"config": types.SimpleNamespace(value=read())})
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workdir=str(copy / "before"), suite=["accuracy"]):
        assert evaluate.main({"examples": "64"}) == 0
        with (
            flagsaver.flagsaver(step="best"),
            pytest.raises(InputError, match="--step=best is of a trained run: leave it out with --config"),
        ):
            evaluate.main({})
    record = Record.read(copy / "before" / "evaluation" / "accuracy.json")
    assert (record.model, record.step, record.examples) == ("before", None, 64)
    assert record.config_hash == config_hash(copy / "before") and (copy / "before" / "report" / "index.html").exists()
    parts, variables = untrained.build(read(), copy / "before")
    test = parts.test.arrays()
    rows = record.columns["index"]
    logits = jax.jit(parts.method.logits)(variables, test["image"][rows].astype(np.float32) / 255)
    np.testing.assert_array_equal(record.columns["correct"], logits.argmax(-1) == test["label"][rows])


def test_a_tower_of_a_file_has_the_texts_of_the_model(read, copy):
    parts, trained, _ = assembly.restore(copy / "run")
    trained = trained._replace(params=jax.tree.map(lambda leaf: leaf + 1, trained.params))
    exporting.torch(parts, trained, copy / "whole.safetensors")
    parts, before = untrained.build(read(), copy / "before")
    _, found = untrained.build(read(), copy / "before", str(copy / "whole.safetensors"))
    assert same(found, trained) and same(found.state, before.state) and not same(found.params, before.params)
    with pytest.raises(InputError, match=r"nothing.pt is no file: expected --weights=FILE"):
        untrained.of_file(parts, "nothing.pt")


def test_a_classifier_before_training_needs_weights(tmp_path):
    digits = f"{command.ROOT}/configs/art_digits.py:variant=natural"
    with pytest.raises(InputError, match=r"model.weights is not set: a model that is not trained is evaluated with"):
        untrained.build(command.read_config(digits), tmp_path / "before")
