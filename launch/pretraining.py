"""A first stage that trains a small CLIP from nothing, for runs that fine-tune one: the section `pretrain` of a config.

The section is a config of its own with the method "contrastive". Of the model it names what differs from that of the
run, and without a seed it has the run's. The CLIP is trained once, in a folder beside the run's that all runs with this
stage share, PARENT/pretrained-HASH: HASH is of all that decides its weights, so runs of other seeds have other folders
unless `pretrain.seed` is one number. There it is an ordinary run, which resumes; in the end clip.safetensors holds both
towers under the names of OpenAI's files, and pretrained.json its checksum.

The run takes that file as its model.weights, and notes in its own pretrained.json which it was. Both folders may be
moved together.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import jax
import ml_collections

from jrobust.errors import InputError, unknown
from jrobust.training import loop, run_folder
from jrobust.weights import clip_layouts
from jrobust.weights.arrays import file_digest

SECTION = "pretrain"
WEIGHTS, RECORD = "clip.safetensors", "pretrained.json"
FORMAT = 1
NEEDED, OTHERS = ("data", "train", "optimizer"), ("seed", "model", "method", "checkpoint", "evaluation")
# Of the run's model, what a CLIP that is trained from nothing has no use for.
_OF_THE_RUN = ("weights", "teacher", "prompts", "head")
# Fields that came later: where they say what was done without them, folders have the names they had.
_LATER = ("train.microbatches", "train.norm_over", "data.held_out", "data.held_out_seed")


def stage(config: Any) -> Any:
    """Return the config of the first stage of a run, None if it has none.

    Raises:
      InputError: the section lacks a part, has one that there is not, or does not go with the run's model.
    """
    if SECTION not in config:
        return None
    section = config[SECTION]
    for key in section:
        if key not in NEEDED + OTHERS:
            raise unknown("section of config.pretrain", key, NEEDED + OTHERS)
    if missing := [name for name in NEEDED if name not in section]:
        raise InputError(f"config.pretrain lacks {', '.join(missing)}: it has the sections of a config of its own")
    if config.model.name != "clip" or config.model.get("weights"):
        found = f"model.name {config.model.name!r} and weights {config.model.get('weights', '')!r}"
        raise InputError(f"config.pretrain trains the weights of a CLIP: got {found}, expected 'clip' and ''")
    if not (config.model.mean and config.model.std):
        raise InputError(
            "config.pretrain needs model.mean and model.std: measured, they would be those of other images"
        )
    if (name := section.get("method", {}).get("name", "contrastive")) != "contrastive":
        raise InputError(f"config.pretrain.method is {name!r}: expected 'contrastive'")
    own = section.copy_and_resolve_references().to_dict()
    model = {key: value for key, value in config.model.to_dict().items() if key not in _OF_THE_RUN}
    found = ml_collections.ConfigDict(
        {"checkpoint": config.checkpoint.to_dict(), "evaluation": {"batch_size": config.evaluation.batch_size}}
        | own
        | {"model": model | {"weights": ""} | own.get("model", {}), "method": {"name": "contrastive"}}
    )
    found.seed = config.seed if own.get("seed") is None else own["seed"]
    found.data.dir = found.data.get("dir", "") or config.data.dir
    found.evaluation.update({"after_training": (), "step": "latest"})
    return found.lock()


def folder(config: Any, workdir: pathlib.Path) -> pathlib.Path:
    """Return where the first stage of the run in `workdir` is: beside it."""
    first = json.loads(json.dumps(stage(config).to_dict()))
    decides = {
        key: value
        for key, value in run_folder.flat(first).items()
        if not (key in _LATER and value == run_folder.ADDED[key])
        and not any(key == name or key.startswith(f"{name}.") for name in run_folder.WITHOUT_EFFECT)
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return workdir.resolve().parent / f"pretrained-{digest[:12]}"


def weights(config: Any, workdir: pathlib.Path) -> str:
    """Return the file of the CLIP that the run in `workdir` begins with, there already or not; "" for none of its own.

    Raises:
      InputError: the file is not the one that the run began with.
    """
    if stage(config) is None:
        return ""
    path, noted = folder(config, workdir) / WEIGHTS, workdir / RECORD
    if noted.exists() and path.exists() and _read(noted)["sha256"] != file_digest(path):
        raise InputError(
            f"{path} is not the file that {workdir} was fine-tuned from: put that one back, or choose another --workdir"
        )
    return str(path)


def done(path: pathlib.Path) -> bool:
    """Return whether the first stage in a folder is through.

    Raises:
      InputError: its weights are damaged.
    """
    if not (path / RECORD).exists():
        return False
    file = path / WEIGHTS
    if not file.exists() or _read(path / RECORD)["sha256"] != file_digest(file):
        raise InputError(
            f"{file} is not as it was written: put it back, or delete {path / RECORD} to write it again from"
            f" {path / 'checkpoints'}"
        )
    return True


def write(path: pathlib.Path, summary: loop.Summary) -> None:
    """Write what a first stage has trained into its folder."""
    write_weights(path / WEIGHTS, summary.train_state.params)
    _note(path / RECORD, path / WEIGHTS, step=summary.step)  # last: with it the stage is through


def write_weights(path: pathlib.Path, params: Any) -> None:
    """Write a whole CLIP as contrastive training has it."""
    clip_layouts.write(path, jax.device_get(params))


def note(config: Any, workdir: pathlib.Path) -> None:
    """Write into the folder of a run which file it begins with, if it has a first stage."""
    if path := weights(config, workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _note(workdir / RECORD, pathlib.Path(path), file=f"../{pathlib.Path(path).parent.name}/{WEIGHTS}")


def _note(record: pathlib.Path, path: pathlib.Path, **fields: Any) -> None:
    run_folder.write_json(record, {"format": FORMAT, "sha256": file_digest(path)} | fields)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or not isinstance(record["sha256"], str):
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or of something else ({error}): delete it to write it again") from error
    return record
