"""The two stages of JTT: a first run whose mistakes are kept as an error set, and a second one on many copies of them.

The first is an ordinary run in WORKDIR/identification. The error set is WORKDIR/error_set.npz with error_set.json; once
it is there it is read and not made again, so the second stage can be repeated alone: delete WORKDIR/checkpoints and
WORKDIR/config.json, and keep the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import assembly
import jax
import numpy as np

from jrobust import data, evaluation, methods
from jrobust.errors import InputError, unknown
from jrobust.methods.jtt import upsampled
from jrobust.training import checkpoint, loop, parallel, run_folder
from jrobust.training.method import Batch, Variables

FOLDER = "identification"
ARRAY, RECORD = "error_set.npz", "error_set.json"
FORMAT = 1
# Fields of config.jtt that are words.
WORDS = {"count": ("total", "extra"), "error_set": ("eval_pass", "online")}

Initialize = Callable[[jax.Array, Batch], Variables]


@dataclasses.dataclass(frozen=True)
class ErrorSet:
    """What the first network gets wrong.

    Attributes:
      wrong: bool[N], over the training set.
      step: of the first stage, whose last parameters these are.
      conflicting: how many of it are bias-conflicting, and how many of the training set; None where biases are unknown.
        For the reader: training knows no bias.
    """

    wrong: np.ndarray
    step: int
    conflicting: tuple[int, int] | None

    def text(self) -> str:
        """Return it in a line."""
        count, total = int(self.wrong.sum()), len(self.wrong)
        share = f"error set: {count:,} of {total:,} training images ({count / total:.2%})"
        if self.conflicting is None:
            return share
        return f"{share}; of the {self.conflicting[1]:,} bias-conflicting ones {self.conflicting[0]:,} are in it"


def first(parts: assembly.Parts) -> assembly.Parts | None:
    """Return the parts of the first stage: the same but for the method, the length and the seed; nothing follows it.

    None where the config asks for one stage only.

    Raises:
      InputError: a value of config.jtt that cannot be, or a method that does not go with it.
    """
    if "jtt" not in parts.config:
        if _jtt(parts.method) is not None:
            raise InputError("method 'jtt' is a second stage: set the section jtt, which describes the first")
        return None
    if hasattr(getattr(parts.method, "base", parts.method), "num_examples"):
        raise InputError(
            f"method {parts.config.method.name!r} remembers each training image, and config.jtt repeats them: leave jtt"
            " out, or take another method"
        )
    section = parts.config.jtt
    for field, words in WORDS.items():
        if section[field] not in words:
            raise unknown(f"jtt.{field}", section[field], words)
    upsampled(np.zeros(1, bool), section.copies, section.count)  # raises for too few copies
    if not section.epochs > 0:
        raise InputError(f"jtt.epochs is {section.epochs}: expected a number above 0")
    config = parts.config.copy_and_resolve_references().unlock()
    del config.jtt
    config.method = {"name": "identification"}
    # Another seed: with the same, both stages would start from the same network and see the same order.
    config.seed = int(np.random.default_rng([parts.config.seed, 1]).integers(2**31))
    config.train.update({"steps": 0, "examples": 0, "epochs": float(section.epochs)})
    config.evaluation.after_training = ()
    method = methods.build(config.method, parts.classifier, num_examples=len(parts.train))
    return parts._replace(config=config.lock(), method=method)


def read(stage: assembly.Parts, parts: assembly.Parts, workdir: pathlib.Path) -> ErrorSet | None:
    """Return the error set that an earlier start has written, None if none has.

    Raises:
      InputError: it is damaged, or was made by another first stage; or there is a second stage and no error set.
    """
    path = workdir / RECORD
    if not path.exists():
        if checkpoint.saved_steps(workdir):
            raise InputError(
                f"{workdir} has checkpoints of the second stage but not {RECORD}, the error set that they were trained"
                f" on: put it and {ARRAY} back, or delete {workdir / 'checkpoints'} to train both stages again"
            )
        return None
    again = f"delete {path} and {workdir / ARRAY} to make them again from {workdir / FOLDER}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError("another format")
        with np.load(workdir / ARRAY, allow_pickle=False) as archive:
            wrong = archive["wrong"]
        if wrong.dtype != bool or wrong.shape != (record["examples"],) or _digest(wrong) != record["sha256"]:
            raise ValueError("another array")
        saved, step = record["settings"], int(record["step"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"the error set in {workdir} is damaged or of something else ({error}): {again}") from error
    free = tuple(f"{FOLDER}.{name}" for name in run_folder.WITHOUT_EFFECT)
    if differing := run_folder.differences(saved, _settings(stage, parts), free=free):
        raise InputError(
            f"the error set in {workdir} was made with other settings: {'; '.join(differing[:3])}; delete {path},"
            f" {workdir / ARRAY} and {workdir / FOLDER} to train the first stage again, or choose another --workdir"
        )
    if len(wrong) != len(parts.train):
        raise InputError(
            f"the error set in {workdir} is of {len(wrong)} training images, and here are {len(parts.train)}: choose"
            " another --workdir, or put back the data of its first stage"
        )
    return ErrorSet(wrong, step, _conflicting(wrong, parts.train))


def write(stage: assembly.Parts, parts: assembly.Parts, summary: loop.Summary, workdir: pathlib.Path) -> None:
    """Find what the network of the first stage gets wrong, and write it into WORKDIR.

    With error_set="eval_pass": one pass of the last parameters over the whole training set, in inference mode and
    without augmentation. With "online": the newest prediction of each image while the network was training.
    """
    variables, mesh = parallel.local(summary.train_state.variables), parallel.local_mesh()
    if parts.config.jtt.error_set == "online":
        wrong = np.asarray(variables.state["wrong"])
    else:
        (record,) = evaluation.run_suites(
            ["accuracy"],
            assembly.subject(stage, stage.method.deployed(variables), FOLDER, summary.step),
            data.for_evaluation(parts.train, stage.config.data.augment),
            {"batch_size": stage.config.evaluation.batch_size},
            mesh=mesh if mesh.size > 1 else None,
            crop_size=stage.config.data.augment.crop_size,
        )
        wrong = np.zeros(len(parts.train), bool)
        wrong[record.columns["index"]] = ~record.columns["correct"]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, wrong=wrong)
    aside = workdir / f"{ARRAY}.tmp"
    aside.write_bytes(buffer.getvalue())
    os.replace(aside, workdir / ARRAY)
    conflicting, of = _conflicting(wrong, parts.train) or (None, None)
    run_folder.write_json(  # last: with it the error set is there
        workdir / RECORD,
        {
            "format": FORMAT,
            "count": int(wrong.sum()),
            "examples": len(wrong),
            "conflicting": conflicting,
            "conflicting_examples": of,
            "step": summary.step,
            "sha256": _digest(wrong),
            "settings": _settings(stage, parts),
        },
    )


def second(
    stage: assembly.Parts, parts: assembly.Parts, errors: ErrorSet, workdir: pathlib.Path, initialize: Initialize | None
) -> tuple[assembly.Parts, Initialize | None]:
    """Return the parts of the second stage, whose training set holds the error set often, and its first variables.

    A method that needs the network of the first stage gets it from its last checkpoint.
    """
    section = parts.config.jtt
    if not errors.wrong.any():
        warnings.warn("the error set is empty: the second stage trains on the training set as it is", stacklevel=2)
    parts = parts._replace(train=data.repeated(parts.train, upsampled(errors.wrong, section.copies, section.count)))
    jtt, begin = _jtt(parts.method), initialize or jax.jit(lambda key, batch: parts.method.init(key, batch))
    if jtt is None:
        return parts, initialize

    def with_biased(key: jax.Array, batch: Batch) -> Variables:
        shapes = jax.eval_shape(stage.method.init, key, batch)
        trained, _ = checkpoint.restore_variables(workdir / FOLDER, errors.step, shapes)
        return jtt.with_biased(begin(key, batch), stage.method.deployed(trained))

    return parts, with_biased


def _jtt(method: Any) -> methods.JTT | None:
    """Return the method, or the one that it is put on top of, if that holds the network of a first stage."""
    base = getattr(method, "base", method)
    return base if isinstance(base, methods.JTT) else None


def _settings(stage: assembly.Parts, parts: assembly.Parts) -> dict[str, Any]:
    """Return all that decides the error set, as JSON gives it back."""
    settings = {"error_set": parts.config.jtt.error_set, FOLDER: stage.config.to_dict()}
    return json.loads(json.dumps(settings))


def _conflicting(wrong: np.ndarray, source: data.Source) -> tuple[int, int] | None:
    if source.biases is None:
        return None
    conflicting = source.biases != source.labels
    return int((wrong & conflicting).sum()), int(conflicting.sum())


def _digest(wrong: np.ndarray) -> str:
    return hashlib.sha256(wrong.tobytes()).hexdigest()
