"""A zero-shot model whose numbers are known in closed form, and data sets for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jrobust.data.source import from_arrays
from jrobust.errors import InputError
from jrobust.evaluation import Subject
from jrobust.training.method import Variables


def level_logits(variables, images, *, beta=None):
    """z_k = -100 (m + shift - level_k)^2, m the mean of the image: the class is the nearest level."""
    mean = images.mean((1, 2, 3))[:, None]
    return -100 * (mean + variables.params["shift"] - variables.state["levels"]) ** 2


@dataclasses.dataclass(frozen=True)
class Levels:
    """Texts are the levels of the classes; the fine-tuned model has the parameter `shift`, the original 0."""

    shift: float = 0.0
    prompts: tuple = (("0.25",), ("0.75",))
    logits: Any = level_logits
    end: float = 1.0
    made: list = dataclasses.field(default_factory=list, compare=False)

    def subject(self, share=1.0) -> Subject:
        state = {"levels": jnp.array([float(texts[0]) for texts in self.prompts])}
        shift = jnp.float32(self.shift) * np.float32(share)
        names = [texts[0] for texts in self.prompts]
        model = dataclasses.replace(self, end=share)
        return Subject("levels", names, self.logits, Variables({"shift": shift}, state), zero_shot=model)

    def for_classes(self, prompts):
        self.made.append(len(prompts))
        return dataclasses.replace(self, prompts=tuple(map(tuple, prompts))).subject(self.end)

    def interpolated(self, share):
        return self.subject(share)


def level_set(name, levels, means, labels, side=2, split="test"):
    """Grey images of the given means; and the texts of the classes."""
    pixels = np.rint(np.asarray(means) * 255).astype(np.uint8)
    images = np.tile(pixels[:, None, None, None], (1, side, side, 3))
    names = [str(level) for level in levels]
    return from_arrays(images, labels, names, name=name, split=split), [[text] for text in names]


def loader(**sets):
    def load(name):
        if name not in sets:
            raise InputError(f"{name} is not in the data folder")
        return sets[name]

    return load
