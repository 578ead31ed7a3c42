"""What training begins with: the first variables of a run, from files where the config names some."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
from assembly import Parts

from jrobust import methods
from jrobust.errors import InputError
from jrobust.models.classifier import Classifier
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.training.method import Batch, Variables
from jrobust.weights import load as weights


def first_variables(parts: Parts) -> Callable[[jax.Array, Batch], Variables] | None:
    """Return what makes the first variables, every network's from model.weights; None to initialise at random.

    `model.new_head=True` keeps a fresh linear layer, for classes other than the file's. A CLIP is fine-tuned from a
    file, and needs one; its own training may begin with one.
    """
    words = parts.texts
    if words is not None and parts.config.method.name == "contrastive":
        return (lambda key, batch: Variables(words.params, {})) if words.weights else None
    if words is not None:
        load_clip, teacher = _pretrained(parts), _teacher(parts)
        return lambda key, batch: teacher(parts.method.start_from(parts.method.init(key, batch), load_clip))
    path = parts.config.model.get("weights", "")
    if not path:
        return None
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"model.weights is {path!r}, which is no file: expected a .safetensors, .npz, .pt or .pth, or '' for none"
        )

    new_head = parts.config.model.get("new_head", False)

    def load(fresh: Variables) -> Variables:
        classifier = parts.classifier
        assert isinstance(classifier, Classifier)
        return Variables(*weights.load(file, classifier, fresh.params, fresh.state, replace_head=new_head))

    return lambda key, batch: parts.method.start_from(parts.method.init(key, batch), load)


def _pretrained(parts: Parts) -> Callable[[Variables], Variables]:
    """Return what gives a CLIP the weights of its file and the texts of the training set's classes."""
    assert parts.texts is not None and isinstance(parts.classifier, TowerClassifier)
    words, classifier = parts.texts, parts.classifier
    features = words.features(words.prompts(parts.train))
    return lambda fresh: Variables(*classifier.pretrained(fresh.params, words.params, features))


def _teacher(parts: Parts) -> Callable[[Variables], Variables]:
    """Return what gives a method the teacher of model.teacher, a fine-tuned network such as launch/soup.py writes.

    Raises:
      InputError: the method learns from none, or has none to learn from; the file is none.
    """
    path, method = parts.config.model.get("teacher", ""), parts.method
    if not (isinstance(method, methods.MaskedImages) and method.logit_weight and method.logit_teacher == "file"):
        if path:
            raise InputError(
                f"model.teacher is {path!r}, and the method learns from no logits of a file: set method.logit_weight,"
                " and logit_teacher to 'file'"
            )
        return lambda variables: variables
    if not pathlib.Path(path).expanduser().is_file():
        raise InputError(
            f"model.teacher is {path!r}: method.logit_weight needs the file of a fine-tuned network, such as a WiSE-FT"
            " average of launch/soup.py"
        )

    def with_teacher(variables: Variables) -> Variables:
        own = method.deployed(variables)
        teacher = Variables(*weights.load(pathlib.Path(path).expanduser(), parts.classifier, own.params, own.state))
        return method.with_teacher(variables, teacher)

    return with_teacher
