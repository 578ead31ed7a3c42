"""The parts that the FSR configs share. Sources: the paper's supplementary and the released code; docs/fsr.md.

W. J. Kim et al., "Feature Separation and Recalibration for Adversarial Robustness", CVPR 2023. The words behind the
colon of --config, the same for every data set:

    method=at|trades|mart           the base method
    fsr                             with the module and its losses; without it, the base method's own row
    model=resnet18|vgg16|wrn34_10
    runlocal                        a size for two CPU cores

and, with `fsr`, for the ablations:

    position=block1|...|block4      after which block; several as block3+block4
    separation_loss=mispredicted|uniform|entropy_max|avg_targeted
    mask=gumbel|binary
    separation=learned|greedy|random|none
"""

from __future__ import annotations

from typing import Any

import ml_collections

from configs import common
from jrobust.errors import InputError

EPS = "8/255"
# The attacks of TRADES and MART are those of their released code. That FSR's rows have them, and the weights of the KL,
# is unverified: nothing of these rows was released.
TRADES_ATTACK = {"eps": "0.031", "step_size": "0.007", "num_steps": 10, "start_noise": 0.001}
METHODS = {
    "at": {"name": "adversarial", "eps": EPS, "num_steps": 10, "batch_norm": "eval"},
    "trades": {"name": "trades", **TRADES_ATTACK, "kl_weight": 6.0, "bn_updates": "two"},  # or "reference"
    "mart": {"name": "mart", **TRADES_ATTACK, "kl_weight": 5.0},  # MART's script for WRN has 6
}
MODELS = {
    "resnet18": {"name": "resnet18_cifar"},
    "vgg16": {"name": "vgg16_cifar"},
    "wrn34_10": {"name": "wide_resnet", "depth": 34, "width": 10, "dropout": 0.0},
}
POSITIONS = {"resnet18": "block4", "vgg16": "block4", "wrn34_10": "block3"}
ABLATIONS = {"position": "", "separation_loss": "mispredicted", "mask": "gumbel", "separation": "learned"}


def arguments(text: str | None) -> dict[str, Any]:
    """Return the words behind the colon.

    Raises:
      InputError: an unknown word, or an ablation of a module that is not there.
    """
    args = common.arguments(text, method="at", fsr=False, model="resnet18", **ABLATIONS, runlocal=False)
    changed = [name for name, default in ABLATIONS.items() if args[name] != default]
    if changed and not args["fsr"]:
        name = changed[0]
        raise InputError(
            f"{name}={args[name]} changes the FSR module, and there is none: write fsr,{name}={args[name]}"
        )
    return args


def base(args: dict[str, Any]) -> ml_collections.ConfigDict:
    """Return the config of a row with the numbers of CIFAR-10."""
    config = common.base()
    config.data.augment.update({"crop_padding": 4, "flip": True})

    config.model = dict(common.choose("model", args["model"], MODELS)) | {"dtype": "float32", "weights": ""}
    config.model.mean, config.model.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # images enter as they are

    config.method = dict(common.choose("method", args["method"], METHODS))
    if args["method"] == "at":
        config.method.step_size = "2/255"
    if args["fsr"]:
        module(config, args)

    # The released code's schedule for AT. Kept for TRADES and MART, so that rows can be compared; theirs is unverified.
    config.train.batch_size = 128
    config.train.epochs = 100.0
    config.optimizer.update(
        {
            "learning_rate": 0.1,
            "nesterov": False,
            "weight_decay": 5e-4,  # of all parameters, batch norm, biases and the module's included
            "drop_epochs": (74, 89),  # epochs 1-74 at the full rate, 75-89 at a tenth, 90-100 at a hundredth
            "drop_factors": (0.1, 0.1),
        }
    )
    evaluation(config)
    return config


def module(config: ml_collections.ConfigDict, args: dict[str, Any]) -> None:
    """Add the module and its losses."""
    positions = args["position"] or POSITIONS[args["model"]]
    config.model.fsr = {
        "positions": tuple(positions.split("+")),
        "hidden": 64,
        "tau": 0.1,
        "mask": args["mask"],
        "straight_through": False,  # of the binary mask; unverified
        "separation": args["separation"],
        "recalibrated_fraction": 0.5,  # of greedy and random; unverified
        "noise": "two_gumbel",  # or "logistic": the same law from half the random numbers
    }
    config.method.fsr = {
        "separation_weight": 1.0,  # lambda_sep
        "recalibration_weight": 1.0,  # lambda_rec
        "separation_loss": args["separation_loss"],
        "auxiliary_on": "adv",  # or "clean", "both", for TRADES and MART; unverified
        "auxiliary_kl": False,
    }


def evaluation(config: ml_collections.ConfigDict, eps: str = EPS, step_size: str = "0.8/255") -> None:
    """Add the paper's evaluation; `worst_case` of the robustness suite is its Ensemble."""
    config.evaluation.after_training = ("accuracy", "robustness", "sanity")
    config.evaluation.robustness = {
        "eps": eps,
        "step_size": step_size,  # a tenth of eps
        "num_steps": (20, 100),
        "random_start": False,
        "cw_steps": (30,),
        "cw_confidence": 50.0,
    }
    config.evaluation.sanity = {
        "eps": eps,
        "step_size": step_size,
        "iterations": (1, 5, 10, 20, 50, 100, 200),  # the grids of Figure S2 are unverified
        "radii": tuple(f"{radius}/255" for radius in (0, 2, 4, 8, 12, 16, 32, 64, 128, 255)),
        "num_steps": 20,
        "unbounded_steps": 100,
        "queries": 300,
        "examples": 64,
        "batch_size": 64,
    }
    # Not run after training: python launch/evaluate.py --workdir=RUN --suite=autoattack
    config.evaluation.autoattack = {
        "norm": "linf",
        "eps": eps,
        "version": "standard",  # unverified
        "examples": 0,  # the whole test split
    }
    # --suite=transfer --against=OTHER_RUN. Table 3 of the paper names DI-FGSM; its variant and budget are unverified.
    config.evaluation.transfer = {"attack": "di_fgsm", "eps": eps, "step_size": "2/255", "num_steps": 10}


def runlocal(config: ml_collections.ConfigDict, *, steps: int = 150) -> None:
    """Shrink a config so that two CPU cores train and evaluate it in minutes. Its numbers are not the paper's.

    WRN-34-10 becomes WRN-10-1; ResNet-18 and VGG16 become the small CNN of three blocks, and positions move down by one
    block, so that the last one stays the last.
    """
    modules, large = config.model.get("fsr"), config.model.name in ("resnet18_cifar", "vgg16_cifar")
    config.model.update({"name": "small_cnn", "width": 16} if large else {})
    config.model.update({"depth": 10, "width": 1} if config.model.name == "wide_resnet" else {})
    if modules is not None:
        modules.hidden = 16
        if large:
            moved = (f"block{max(1, int(position.removeprefix('block')) - 1)}" for position in modules.positions)
            modules.positions = tuple(dict.fromkeys(moved))
    config.train.steps = steps
    config.train.batch_size = 64
    config.train.log_every_steps = 10
    config.train.evaluate_examples = 256
    config.train.evaluate_every_epochs = 0.0  # only at the end
    config.checkpoint.every_steps = 50
    config.optimizer.learning_rate = 0.05
    config.evaluation.batch_size = 128
    config.evaluation.examples = 256
    config.evaluation.robustness.update({"num_steps": (10, 20), "cw_steps": (10,)})
    config.evaluation.autoattack.examples = 64
    config.evaluation.sanity.update({"iterations": (1, 5, 20), "num_steps": 10, "queries": 50, "examples": 32})
    config.evaluation.sanity.update({"radii": ("4/255", "8/255", "32/255"), "unbounded_steps": 50})
