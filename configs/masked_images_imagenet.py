"""CLIP fine-tuned on ImageNet with masked images (Xiao et al., CVPR 2023), and on its five natural shifts.

    python launch/run.py --config=configs/masked_images_imagenet.py:method=masked --config.data.dir=DATA \\
        --config.model.weights=ViT-B-32.pt --config.model.vocabulary=bpe_simple_vocab_16e6.txt.gz --workdir=RUN

The words behind the colon:

    method=masked|fd|ft|wise_kd         cross-entropy and beta MSE of the features of masked images; of clean ones;
                                        cross-entropy alone; masked, and gamma KL to a frozen fine-tuned model
    method=kd|masked_kd|lp              cross-entropy and beta KL to the pre-trained model on clean images; on masked
                                        ones; cross-entropy alone, of the head on the frozen tower
    masking=object|context|random       which patches
    refilling=single|multi|none         from one other image, each from its own, or patches are dropped
    threshold=NUMBER                    of the relevance map; with masking=random the share of patches. Without it that
                                        of the released examples
    vit=b32|b16|l14
    schedule=appendix|released          warm-up and cosine, or one cycle in which beta1 moves, too
    study=methods|grid                  many rows and one table
    runlocal                            a size for two CPU cores; docs/masked_images.md says which small CLIP it needs

The weights are a whole CLIP's, OpenAI's file or another layout of it, the vocabulary is the file in OpenAI's
repository. DATA holds imagenet/ and the five shifts (launch/prepare_data.py says what to fetch);
--config.evaluation.natural_shift.missing=skip goes on without those that are not there. WiSE-KD needs its teacher,
the average of the zero-shot and of a vanilla fine-tuned model:

    python launch/soup.py --runs=RUN --step=best --kind=wise --share=0.5 --output=wise.safetensors    (RUN: method=ft)
    --config=configs/masked_images_imagenet.py:method=wise_kd --config.model.teacher=wise.safetensors

Suite `masking` needs images with masks, which ImageNet has not: its settings are here, configs/masked_images_shapes.py
runs it.

Sources are the paper's appendix and its released code; the main text was not at hand, so no number of its tables is
quoted. Unverified: beta and gamma of the tables, the best masking, refilling and threshold of each architecture, the
thresholds of the tables' grid, whether ViT-B/16 and L/14 have the same rate and epochs, with which weights the student
of WiSE-KD begins (here: the zero-shot ones).

10,240 training images, of each class its share, are held out with the run's seed, as in the released code, and choose
the checkpoint that is evaluated; test images choose nothing. Runs that are to be averaged into a greedy soup need one
draw: --config.data.held_out_seed=0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import ml_collections

from configs import clip_shapes, common
from jrobust.errors import InputError, unknown
from jrobust.models.clip.clip import MEAN, STD

ARCHITECTURES = {"b32": "ViT-B/32", "b16": "ViT-B/16", "l14": "ViT-L/14"}
# Of a batch of 512 on one device: with 128 images of ViT-B/16 or 32 of L/14 at a time, some 40 GB of activations in
# float32 by count, not measured. Divide by the number of devices.
MICROBATCHES = {"b32": 1, "b16": 4, "l14": 16}
# Of the released examples; with masking=random the share of patches.
THRESHOLDS = {
    ("random", "none"): 0.75,
    ("random", "single"): 0.5,
    ("random", "multi"): 0.5,
    ("object", "none"): 0.3,
    ("object", "single"): 0.3,
    ("object", "multi"): 0.6,
    ("context", "none"): 0.6,
    ("context", "single"): 0.5,
    ("context", "multi"): 0.3,
}
MASKINGS, REFILLINGS = ("object", "context", "random"), ("single", "multi", "none")
SCHEDULES: dict[str, dict[str, Any]] = {
    "appendix": {"schedule": "cosine", "warmup_steps": 500},
    "released": {"schedule": "one_cycle", "cycle_beta1": True},  # of 2% of the run, 496 steps of 24,820
}
BETA, GAMMA, TAU = 30.0, 1.0, 10.0
# The KL to the pre-trained model has the weight beta in the released code.
KD = {"feature_weight": 0.0, "logit_weight": BETA, "logit_teacher": "pretrained"}
METHODS: dict[str, dict[str, Any]] = {
    "masked": {"feature_weight": BETA, "logit_weight": 0.0},
    "fd": {"feature_weight": BETA, "logit_weight": 0.0},
    "ft": {},
    "wise_kd": {"feature_weight": BETA, "logit_weight": GAMMA},
    "kd": KD,
    "masked_kd": KD | {"logit_images": "masked"},
    "lp": {},
}
WITH_MASKS = ("masked", "wise_kd", "masked_kd")
OF_MASKS = {"masking": MASKINGS[0], "refilling": REFILLINGS[0], "threshold": ""}
STUDIES = {
    "methods": tuple(f"method={name}" for name in ("ft", "fd", "masked")),
    "grid": tuple(
        f"masking={masking},refilling={refilling},threshold={threshold}"
        for masking in MASKINGS
        for refilling in REFILLINGS
        for threshold in ((0.5, 0.75) if masking == "random" else (0.3, 0.5, 0.6))  # those of the examples
    ),
}


def arguments(text: str | None) -> dict[str, Any]:
    """Return the words behind the colon; `threshold` as a number.

    Raises:
      InputError: an unknown word or value, or a word of masks for a method that has none.
    """
    defaults = {"method": "masked", "vit": "b32", "schedule": "appendix", "study": "", **OF_MASKS}
    args = common.arguments(text, **defaults, runlocal=False)
    allowed: dict[str, Iterable[str]] = {"method": METHODS, "vit": ARCHITECTURES, "schedule": SCHEDULES}
    allowed |= {"study": ("", *STUDIES), "masking": MASKINGS, "refilling": REFILLINGS}
    for name, words in allowed.items():
        if args[name] not in words:
            raise unknown(name, args[name], [word for word in words if word])
    for name, default in OF_MASKS.items():
        if args[name] != default and args["method"] not in WITH_MASKS:
            word = f"{name}={args[name]}"
            raise InputError(
                f"{word} is of masks that method={args['method']} does not have: write method=masked,{word}"
            )
    released = THRESHOLDS[args["masking"], args["refilling"]]
    return args | {"threshold": _share(args["threshold"]) if args["threshold"] else released}


def _share(text: str) -> float:
    """Return the number that a text is."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"threshold={text}: expected a number in [0, 1], such as threshold=0.3")
    return value


def method(args: dict[str, Any]) -> dict[str, Any]:
    """Return the method section of a row."""
    name = args["method"]
    if name in ("ft", "lp"):
        return {"name": "standard" if name == "ft" else "linear_probe"}
    found = {"name": "masked_images", "masking": "none", **METHODS[name], "temperature": TAU}
    if name in WITH_MASKS:
        found |= {"masking": args["masking"], "refilling": args["refilling"]}
        found["rate" if args["masking"] == "random" else "threshold"] = args["threshold"]
        # The released code refills within the 128 images of each of four GPUs: on four devices, or within a part of 128
        # images and less, there is one group.
        found["groups"] = 4 // min(MICROBATCHES[args["vit"]], 4)
    return found


def get_config(argument: str = ""):
    """Return the config of one row or of a study, at full or local size."""
    args = arguments(argument)
    config = common.base()
    config.data.name = "imagenet"
    config.data.image_size = 224
    # In training as in evaluation, and nothing random.
    config.data.options.update({"fit": "crop", "resize": 224, "filter": "bicubic"})
    config.data.resident = False
    config.data.held_out = 10_240  # 1,270,927 of the 1,281,167 are left

    config.model = {
        "name": "clip",
        "architecture": ARCHITECTURES[args["vit"]],
        "head": "linear",
        "template": "openai_80",
        "activation": "quick_gelu",
        "interpolation": "bicubic",
        "dtype": "float32",
        "mean": MEAN,
        "std": STD,
        "weights": "",  # the file of a whole CLIP
        "vocabulary": "",  # the file bpe_simple_vocab_16e6.txt.gz
        "teacher": "",  # of method=wise_kd: the file of a fine-tuned model
    }
    config.method = method(args)

    config.train.batch_size = 512
    config.train.epochs = 10.0  # 24,820 steps
    config.train.evaluate_split = "validation"
    config.train.evaluate_examples = 0
    config.train.microbatches = MICROBATCHES[args["vit"]]
    config.optimizer.update(
        {
            "name": "adamw",
            "learning_rate": 3e-5,
            "betas": (0.9, 0.999),
            "epsilon": 1e-8,
            "weight_decay": 0.0 if args["method"] == "lp" else 0.1,
            "clip_norm": 1.0,
            **SCHEDULES[args["schedule"]],
        }
    )
    config.evaluation.after_training = ("accuracy", "natural_shift")
    config.evaluation.step = "best"
    config.evaluation.natural_shift = {
        "sets": ("imagenet", "imagenet_v2", "imagenet_r", "imagenet_sketch", "objectnet", "imagenet_a"),
        "missing": "error",  # or "skip"
    }
    config.evaluation.masking = {"threshold": 0.3, "thresholds": tuple(k / 10 for k in range(1, 10))}
    if args["study"]:
        config.study = {
            "rows": STUDIES[args["study"]],
            "seeds": (0, 1, 2),
            "measures": ("imagenet", "average_shift"),
        }
    if args["runlocal"]:
        runlocal(config)
    return config


def runlocal(config: ml_collections.ConfigDict) -> None:
    """Shrink a config so that two CPU cores train and evaluate it in minutes. Its numbers are not the paper's.

    The tower is that of configs/clip_shapes.py, the text tower has CLIP's vocabulary and length of texts, training
    images are 32 pixels wide, one image a class is held out, and of the shifts there is none.
    """
    config.model.architecture = ""
    config.model.sizes = clip_shapes.SIZES | {"vocabulary": 49408, "context": 77}
    config.data.image_size = config.data.options.resize = clip_shapes.SIZES["image_size"]
    config.data.held_out = 1000
    config.train.update({"steps": 60, "batch_size": 64, "log_every_steps": 10, "evaluate_examples": 256})
    config.train.update({"microbatches": 1, "evaluate_every_epochs": 0.0})  # accuracy only at the end
    config.checkpoint.every_steps = 20
    config.optimizer.warmup_steps = min(10, config.optimizer.warmup_steps)
    config.evaluation.update({"batch_size": 128, "examples": 128})
    config.evaluation.natural_shift.sets = ("imagenet",)
