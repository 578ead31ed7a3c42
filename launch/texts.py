"""The text side of CLIP for the commands: from a data set's classes to the features that stand for them."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrobust import data
from jrobust.data import class_prompts, shapes
from jrobust.errors import InputError
from jrobust.evaluation import Subject
from jrobust.models.clip.clip import CLIP
from jrobust.models.clip.sections import towers
from jrobust.models.clip.tokenizer import Tokenizer
from jrobust.models.clip.zero_shot import class_features
from jrobust.replicated import Replicated
from jrobust.training.method import Variables
from jrobust.weights import averaging, clip_files, clip_layouts

OWN_WORDS = "shapes"  # as model.vocabulary: the words of the data set `shapes`
Prompts = Sequence[Sequence[str]]  # the texts of each class


class Texts:
    """Prompts, their token ids and their features, with the text tower of `model.weights`.

    The file is read when features are asked for, once; features of prompts are computed once and stay on the device.

    Attributes:
      weights: the file, "" for none.
    """

    def __init__(self, config_model: Any):
        self.clip: CLIP = towers(config_model)
        self.template = config_model.get("template", "")
        self.weights: str = config_model.get("weights", "")
        self._architecture = "" if config_model.get("sizes") else config_model.get("architecture", "")
        self._vocabulary = config_model.get("vocabulary", "")
        self._features: dict[tuple[tuple[str, ...], ...], jax.Array] = {}

    def prompts(self, source: data.Source) -> list[list[str]]:
        """Return the texts of each class of a data set."""
        return class_prompts.prompts(source.name, source.class_names, self.template)

    def tokens(self, prompts: Prompts) -> np.ndarray:
        """Return int32[K, M, T] for K classes of M texts each.

        Raises:
          InputError: classes with different numbers of texts, a text that is too long, or no vocabulary.
        """
        counts = {len(texts) for texts in prompts}
        if len(counts) != 1:
            raise InputError(f"classes have {sorted(counts)} prompts: expected the same number for each")
        rows = self._encode([text for texts in prompts for text in texts])
        return np.asarray(rows, np.int32).reshape(len(prompts), counts.pop(), -1)

    def features(self, prompts: Prompts) -> jax.Array:
        """Return W float32[K, E] of K classes."""
        key = tuple(map(tuple, prompts))
        if key not in self._features:
            self._features[key] = class_features(self.clip, self.params, jnp.asarray(self.tokens(prompts)))
        return self._features[key]

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        """All of CLIP, as `CLIP.init` returns it, from the file.

        Raises:
          InputError: there is none, or it is of something else.
        """
        path = pathlib.Path(self.weights).expanduser()
        if not self.weights or not path.is_file():
            raise clip_files.missing(self._architecture, self.weights)
        return clip_layouts.load(path, self.clip)

    @functools.cached_property
    def _encode(self) -> Callable[[Sequence[str]], np.ndarray]:
        length = self.clip.sizes.context
        if self._vocabulary == OWN_WORDS:
            return lambda texts: shapes.tokens(texts, length)
        if not self._vocabulary:
            raise InputError(
                "model.vocabulary is not set: expected the file bpe_simple_vocab_16e6.txt.gz of CLIP's repository, or"
                f" {OWN_WORDS!r} for the words of the data set shapes"
            )
        tokenizer = Tokenizer(self._vocabulary, context=length)
        if tokenizer.vocabulary != self.clip.sizes.vocabulary:
            raise InputError(
                f"{self._vocabulary} has {tokenizer.vocabulary} token ids, this CLIP {self.clip.sizes.vocabulary}: set"
                " model.vocabulary to the file that its weights were trained with"
            )
        return tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class ZeroShotModel:
    """A CLIP under evaluation, for other classes and between its original and its fine-tuned weights."""

    subject: Subject
    texts: Texts
    original: Callable[[], Any]  # the parameters before fine-tuning

    def for_classes(self, prompts: Prompts) -> Subject:
        """Return the same model for other classes, one list of texts each, named by their first texts.

        Raises:
          InputError: it has a linear head, whose classes are its own.
        """
        params, state = self.subject.variables
        if "text" not in state:
            raise InputError("this model has a linear head, whose classes are its own: expected model.head 'text'")
        state = state | {"text": Replicated(self.texts.features(prompts))}
        names = tuple(texts[0] for texts in prompts)
        return self._replaced(class_names=names, variables=Variables(params, state))

    def interpolated(self, share: float) -> Subject:
        """Return (1 - share) original + share fine-tuned, over all that was trained: the tower, and a linear head.

        Raises:
          InputError: visual prompts were trained, and the tower is the original.
        """
        params, state = self.subject.variables
        if "tower" in state:
            raise InputError("this model trained visual prompts: its image tower is the original, nothing is between")
        mixed = averaging.interpolate(self.original(), params, share)
        return self._replaced(variables=Variables(mixed, state))

    def _replaced(self, **fields: Any) -> Subject:
        subject = dataclasses.replace(self.subject, **fields)
        return dataclasses.replace(subject, zero_shot=dataclasses.replace(self, subject=subject))
