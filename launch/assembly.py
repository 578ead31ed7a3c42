"""From a config to the parts of a run: sources, network, method. The one place where all rooms meet."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import pretraining
import sources
import texts

from jrobust import data, evaluation, methods
from jrobust.data import zero_shot_sets
from jrobust.data.captioned import captioned, shapes_tokens
from jrobust.errors import InputError, unknown
from jrobust.methods.network import NetworkMethod
from jrobust.methods.relevance import PatchRelevance
from jrobust.models import zoo
from jrobust.models.classifier import Classifier
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.models.network import Network
from jrobust.training import checkpoint, parallel
from jrobust.training.method import Variables

# The words of train.evaluate_split and of evaluation.step.
SPLITS, STEPS = ("test", "validation"), ("latest", "best")


class Parts(NamedTuple):
    """A config brought to life."""

    config: Any  # the config with what was measured filled in
    train: data.Source
    held_out: data.Source  # the split of train.evaluate_split
    test: data.Source
    classifier: Network
    method: NetworkMethod
    texts: texts.Texts | None = None  # of a CLIP


def build(config: Any, weights_file: str = "") -> Parts:
    """Return the sources, the network and the method that a config names.

    Where model.mean and model.std are (), they are measured on the training set and written into the config.

    Args:
      config: of the run.
      weights_file: of a CLIP, in the place of model.weights, there already or not yet.

    Raises:
      InputError: whatever of it cannot be had.
    """
    parallel.check_mode(config.train.parallelism)
    section, split = config.data, evaluate_split(config)
    if (step := config.evaluation.get("step", "latest")) not in STEPS:
        raise unknown("evaluation.step", step, STEPS)
    train = sources.source(config, "train")
    held_out, test = (data.for_evaluation(sources.source(config, part), section.augment) for part in (split, "test"))
    if not (config.model.mean and config.model.std):
        config.model.mean, config.model.std = data.channel_statistics(train)
    if section.balance_to:
        train = data.balanced(train, section.balance_to, config.seed)
    classifier = network(config, train)
    words = None
    if isinstance(classifier, TowerClassifier):
        words = texts.Texts(config.model.to_dict() | ({"weights": weights_file} if weights_file else {}))
    if config.method.name == "contrastive":
        assert words is not None
        train = captioned(train, shapes_tokens(train, config.data.captions, words.clip.sizes.context))
    method = _method(config, classifier, test, len(train), words)
    return Parts(config, train, held_out, test, classifier, method, words)


def _method(
    config: Any, classifier: Network, source: data.Source, num_examples: int, words: texts.Texts | None
) -> NetworkMethod:
    """Return the method of a config on a network, for the classes of a source."""
    tokens: Any = ()
    if config.method.name == "contrastive" and words is not None:
        listed = words.tokens(words.prompts(source)).tolist()
        tokens = tuple(tuple(tuple(row) for row in rows) for rows in listed)
    return methods.build(
        config.method,
        classifier,
        num_examples=num_examples,
        microbatches=config.train.get("microbatches", 1),  # runs of earlier versions have none
        class_tokens=tokens,
    )


def evaluate_split(config: Any) -> str:
    """Return the split on which accuracy is measured during training, by which the best checkpoint is chosen.

    Raises:
      InputError: train.evaluate_split is none of the words it can be.
    """
    split = config.train.get("evaluate_split", "test")  # runs of earlier versions have none
    if split not in SPLITS:
        raise unknown("train.evaluate_split", split, SPLITS)
    return split


def choice(config: Any, step: int | str) -> str:
    """Return how a checkpoint was chosen; "" where nothing was measured for it.

    >>> choice(ml_collections.ConfigDict({"train": {"evaluate_split": "validation"}}), "best")
    'the best checkpoint by accuracy on the validation split'
    """
    if step != "best":
        return ""
    split = evaluate_split(config)
    seen = ": an oracle, for its choice has seen the test labels" if split == "test" else ""
    return f"the best checkpoint by accuracy on the {split} split{seen}"


def oracle(config: Any, step: int | str) -> str:
    """Return what to warn of where a checkpoint was chosen by test images, "" where it was not."""
    return choice(config, step) if evaluate_split(config) == "test" else ""


def network(config: Any, source: data.Source) -> Network:
    """Return the network of a config for the classes and the image shape of a source."""
    found = zoo.build(
        config.model,
        num_classes=len(source.class_names),
        input_shape=data.output_shape(source.image_shape, data.Augmentation.of(config.data.augment)),
    )
    if not isinstance(found, Classifier):  # a tower of CLIP has no batch norm, or frozen ones
        return found
    return dataclasses.replace(found, norm_over=config.train.get("norm_over", "batch"))  # earlier runs have none


def subject(
    parts: Parts, deployed: Variables, name: str, step: int | None = None, dtype: str = "float32", note: str = ""
) -> evaluation.Subject:
    """Return the model as the evaluation suites take it: what the method deploys, computed in `dtype`.

    Evaluation is in float32 unless asked otherwise, whatever the network was trained in.
    """
    config = parts.config.copy_and_resolve_references().unlock()
    config.model.dtype = dtype
    classifier = network(config, parts.train)
    found = evaluation.Subject(
        name,
        parts.train.class_names,
        _method(config, classifier, parts.test, len(parts.train), parts.texts).logits,
        deployed,
        dtype=dtype,
        step=step,
        feature_map=classifier.logits_and_map if isinstance(classifier, Classifier) and classifier.has_map else None,
        note=note,
    )
    if not isinstance(classifier, TowerClassifier):
        return found
    if classifier.clip.sizes.patch is not None:
        found = dataclasses.replace(found, relevance=PatchRelevance(classifier).maps)
    words = parts.texts
    assert words is not None

    def original() -> Any:
        features = words.features(words.prompts(parts.train))
        return classifier.pretrained(deployed.params, words.params, features)[0]

    return dataclasses.replace(found, zero_shot=texts.ZeroShotModel(found, words, functools.cache(original)))


def sets(parts: Parts) -> Callable[[str], tuple[data.Source, texts.Prompts]]:
    """Return what loads other data sets, for a CLIP with the texts of their classes; the shifts of ImageNet have none.

    They lie where that of the run does, and the tasks of `shapes` show the run's world if it is one of them.
    """
    section, words = parts.config.data, parts.texts

    def load(name: str) -> tuple[data.Source, texts.Prompts]:
        same = section.name == name.partition(":")[0]
        options = {key: value for key, value in section.get("options", {}).items() if same and key != "task"}
        source = zero_shot_sets.load_set(name, section.dir, **options)
        return source, () if words is None or name in zero_shot_sets.SHIFTS else words.prompts(source)

    return load


def read_config(workdir: str | pathlib.Path) -> Any:
    """Return the config of a run, locked, from WORKDIR/config.json.

    Raises:
      InputError: there is none.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        config = ml_collections.ConfigDict(_tuples(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise InputError(f"{path} cannot be read: expected the folder of a run of launch/run.py") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: expected the config that launch/run.py wrote") from error
    return config.lock()


def reopen(workdir: str | pathlib.Path, data_dir: str | None = None) -> tuple[Parts, Variables]:
    """Return the parts of a run from its config.json, and the shapes of its variables.

    `data_dir` is where the data are now, if not where they were.
    """
    config = read_config(workdir)
    if data_dir is not None:
        config.data.dir = data_dir
    parts = build(config, pretraining.weights(config, pathlib.Path(workdir)))
    return parts, jax.eval_shape(parts.method.init, jax.random.key(0), {})


def restore(
    workdir: str | pathlib.Path, step: int | str = "latest", data_dir: str | None = None
) -> tuple[Parts, Variables, int]:
    """Return the parts of a trained run, what its method deploys, and the step of that, as checkpointed.

    Args:
      workdir: the run's folder.
      step: "latest", "best" or a saved step.
      data_dir: as for `reopen`.
    """
    parts, shapes = reopen(workdir, data_dir)
    variables, found = checkpoint.restore_variables(workdir, step, shapes)
    return parts, parts.method.deployed(variables), found


def run_name(config_argument: str, config: Any) -> str:
    """Return <config>-<variant>-<seed> for a config file and the words behind the colon.

    >>> class Config: seed = 3; method = ml_collections.ConfigDict({"name": "art"})
    >>> run_name("configs/art_digits.py:variant=pgd,runlocal", Config)
    'art_digits-pgd-runlocal-3'
    >>> run_name("configs/art_digits.py", Config)
    'art_digits-art-3'
    >>> run_name("configs/fsr_digits.py:method=at,fsr", Config)
    'fsr_digits-at-fsr-3'
    """
    path, _, words = config_argument.partition(":")
    values = [word.rpartition("=")[2] for word in words.split(",") if word]
    if not any(word.startswith(("variant=", "method=")) for word in words.split(",")):
        values.insert(0, config.method.name)
    return re.sub(r"[^\w.-]", "_", "-".join([pathlib.PurePath(path).stem, *values, str(config.seed)]))


def _tuples(value: Any) -> Any:
    """Return JSON with its lists as the tuples that a config has."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
