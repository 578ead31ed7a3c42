"""The parts that the PMG-AFT configs share. Sources: the paper, its supplement, the released code; docs/pmg_aft.md.

S. Wang, J. Zhang, Z. Yuan, S. Shan, "Pre-trained Model Guided Fine-Tuning for Zero-Shot Adversarial Robustness", CVPR
2024. The words behind the colon of --config, the same for both data sets:

    method=pmg_aft|tecoa|ft         the image tower is trained: by all of the loss, by cross-entropy on attacked or on
                                    clean images
    method=vpt_pmg_aft|vpt_tecoa    visual prompts are trained, the tower is frozen
    method=clip                     the pre-trained model: one step of rate 0, then the same evaluation
    preset=released|scaled          logits, statistics and sums as in the released code, or as CLIP was trained
    eps=1/255|2/255|4/255           radius of training and of evaluation; the step stays 1/255
    study=paper|eps|alpha_beta|distance     many rows and one table
    runlocal                        a size for two CPU cores

and, for the two methods with all of the loss:

    distance=kl|l2|feature_l2|feature_cosine        of the generalisation branch
    alpha=WEIGHT, beta=WEIGHT                       of the generalisation branch and of the regulariser
"""

from __future__ import annotations

import math
from typing import Any

import ml_collections

from configs import clip_shapes, common
from jrobust.data.zero_shot_sets import PAPER
from jrobust.errors import InputError, unknown
from jrobust.models.clip.clip import MEAN, STD

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Every difference between the two; docs/pmg_aft.md says where each is from.
PRESETS: dict[str, dict[str, Any]] = {
    "released": {"scaled": False, "statistics": IMAGENET, "reduction": "sum", "sample": "strided20"},
    "scaled": {"scaled": True, "statistics": (MEAN, STD), "reduction": "batchmean", "sample": "full"},
}
METHODS = ("pmg_aft", "tecoa", "ft", "vpt_pmg_aft", "vpt_tecoa", "clip")
DISTANCES = ("kl", "l2", "feature_l2", "feature_cosine")
RADII = ("1/255", "2/255", "4/255")
STEP_SIZE = "1/255"  # at every radius; at 2/255 and 4/255 that is unverified
OF_THE_LOSS = {"distance": DISTANCES[0], "alpha": "1", "beta": "1"}
WEIGHTS = ("0", "0.5", "1", "2")
STUDIES = {
    "paper": tuple(f"method={name}" for name in ("clip", "ft", "tecoa", "pmg_aft", "vpt_tecoa", "vpt_pmg_aft")),
    "eps": tuple(f"method={name},eps={eps}" for eps in RADII for name in ("tecoa", "pmg_aft")),
    # The last four pairs of the paper's grid are not known; 0, 0 is FT-TeCoA.
    "alpha_beta": tuple(f"alpha={alpha},beta={beta}" for alpha in WEIGHTS for beta in WEIGHTS),
    "distance": tuple(f"distance={name}" for name in DISTANCES),
}


def arguments(text: str | None) -> dict[str, Any]:
    """Return the words behind the colon; `alpha` and `beta` as numbers.

    Raises:
      InputError: an unknown word or value, or a word that changes a loss that is not there.
    """
    defaults = {"method": METHODS[0], "preset": "released", "eps": RADII[0], "study": "", **OF_THE_LOSS}
    args = common.arguments(text, **defaults, runlocal=False)
    allowed = {"method": METHODS, "preset": PRESETS, "eps": RADII, "distance": DISTANCES, "study": ("", *STUDIES)}
    for name, words in allowed.items():
        if args[name] not in words:
            raise unknown(name, args[name], [word for word in words if word])
    for name, default in OF_THE_LOSS.items():
        if args[name] != default and not args["method"].endswith("pmg_aft"):
            word = f"{name}={args[name]}"
            raise InputError(
                f"{word} changes a loss that method={args['method']} does not have: write method=pmg_aft,{word}"
            )
    return args | {name: _weight(name, args[name]) for name in ("alpha", "beta")}


def _weight(name: str, text: str) -> float:
    """Return the number that a text is."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"{name}={text}: expected a number of at least 0, such as {name}=0.5")
    return value


def build(argument: str | None, data_set: str) -> ml_collections.ConfigDict:
    """Return the config of a row that is trained on a data set, or of a study, at full or local size."""
    args = arguments(argument)
    config, preset = common.base(), PRESETS[args["preset"]]
    config.data.name = data_set
    config.data.augment.update({"resize": 256, "crop_size": 224, "center_crop": True})  # and nothing random

    config.model = {
        "name": "clip",
        "architecture": "ViT-B/32",
        "activation": "quick_gelu",
        "interpolation": "bicubic",
        "scaled": preset["scaled"],  # whether exp(logit_scale) = 100 multiplies the cosines
        "template": "",  # each data set's own
        "vocabulary": "",  # the file bpe_simple_vocab_16e6.txt.gz
        "dtype": "bfloat16",  # of training; the released code's is float16. Evaluation is in float32
        "weights": "",  # the file of a whole CLIP
    }
    config.model.mean, config.model.std = preset["statistics"]
    if args["method"].startswith("vpt_"):
        config.model.prompts = {"pixels": "border", "width": 30, "tokens": 100}  # or "full"; unverified
    config.method = method(args, preset["reduction"])

    config.train.batch_size = 256
    config.train.epochs = 10.0
    config.optimizer.update(
        {
            "learning_rate": 40.0 if "prompts" in config.model else 5e-5,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.0,
            "schedule": "cosine",
            "warmup_steps": 1000,
        }
    )
    evaluation(config, args["eps"], preset["sample"])
    if args["runlocal"]:
        runlocal(config)
    if args["method"] == "clip":  # a run like others, whose parameters stay as they are to the bit
        config.train.steps = 1
        config.optimizer.update({"learning_rate": 0.0, "warmup_steps": 0})
    if args["study"]:
        config.study = {
            "rows": STUDIES[args["study"]],
            "seeds": (0,),  # the released code's
            "measures": ("average.clean", f"average.pgd_{config.evaluation.zero_shot.num_steps}"),
        }
    return config


def method(args: dict[str, Any], reduction: str) -> dict[str, Any]:
    """Return the method section of a row."""
    name = args["method"].removeprefix("vpt_")
    if name in ("ft", "clip"):
        return {"name": "standard"}
    attack = {"eps": args["eps"], "step_size": STEP_SIZE, "num_steps": 2, "batch_norm": "eval"}
    if name == "tecoa":
        return {"name": "adversarial", **attack}
    return {
        "name": "pmg_aft",
        **attack,
        "general_weight": args["alpha"],
        "clean_weight": args["beta"],
        "distance": args["distance"],
        "kl_direction": "ori_adv",  # or "adv_ori"; which one made the tables is unverified
        "reduction": reduction,
        "detach_clean": False,
        "original_prompts": "pixels",  # or "none", "all": what the original sees of visual prompts; unverified
    }


def evaluation(config: ml_collections.ConfigDict, eps: str, sample: str) -> None:
    """Add the paper's evaluation: suite zero_shot is Tables 1 to 3 and 6 to 13, suite interpolation Figure 5."""
    sets = {
        "sets": tuple(PAPER),
        "source": config.data.name,
        "missing": "error",  # or "skip"
        "sample": sample,
        "eps": eps,
        "step_size": STEP_SIZE,
        "num_steps": 10,
        "random_start": True,
    }
    config.evaluation.after_training = ("accuracy", "zero_shot")
    config.evaluation.zero_shot = sets | {
        "attacks": ("pgd", "cw"),
        "cw_confidence": 50.0,
        "autoattack": False,  # Table 3; takes hours
        "sweep": (),  # radii of a curve
    }
    # Not run after training: python launch/evaluate.py --workdir=RUN --suite=interpolation
    config.evaluation.interpolation = sets | {"shares": tuple(k / 10 for k in range(11))}  # unverified


def runlocal(config: ml_collections.ConfigDict) -> None:
    """Shrink a config so that two CPU cores train and evaluate it in minutes. Its numbers are not the paper's.

    The tower is that of configs/clip_shapes.py, the text tower has CLIP's vocabulary, images are 32 pixels wide, and
    the only data set is the one that is trained on.
    """
    config.model.architecture = ""
    config.model.sizes = clip_shapes.SIZES | {"vocabulary": 49408}
    config.model.dtype = "float32"
    if "prompts" in config.model:
        config.model.prompts.update({"width": 4, "tokens": 10})
    config.data.augment.update({"resize": 36, "crop_size": 32})
    config.train.update({"steps": 60, "batch_size": 64, "log_every_steps": 10, "evaluate_examples": 256})
    config.train.evaluate_every_epochs = 0.0  # only at the end
    config.checkpoint.every_steps = 20
    config.optimizer.warmup_steps = 10
    config.evaluation.update({"batch_size": 128, "examples": 128})
    for suite in ("zero_shot", "interpolation"):
        config.evaluation[suite].update({"sets": (config.data.name,), "sample": "full"})
    config.evaluation.interpolation.shares = (0.0, 0.5, 1.0)
