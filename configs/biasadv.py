"""The parts that the BiasAdv configs share. Sources: the paper and its supplementary; docs/biasadv.md.

J. Lim et al., "BiasAdv: Bias-Adversarial Augmentation for Model Debiasing", CVPR 2023. The words behind the colon of
--config, the same for every data set:

    method=erm|jtt|lff              the base method
    biasadv                         with bias-adversarial images; without it, the base method's own row
    ratio=NUMBER                    percent of training images that conflict with the bias; each data set has its own
    runlocal                        a size for two CPU cores

and, with `biasadv`:

    preset=linf_pixel_fixed|linf_norm|l2_pixel      how the attack is read, for the paper leaves it open
    numbers=supplement|main                         lambda, eps, steps, beta: a set a method, or one a data set
    ablation=none|random|advprop|lam0               the rows of the paper's Table 5

A data set's numbers are the supplementary's table of it, column by column: `Table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import common
from jrobust.errors import InputError, unknown

# A row of the supplementary's Tables 1 to 4: one number for all, or one each for ERM, JTT and LfF, with BiasAdv.
Table = Mapping[str, Any]
COLUMNS = ("erm", "jtt", "lff")
ATTACK = ("lambda", "eps", "steps", "beta")  # the rows of which the main paper has its own, one number for all methods

PRESETS = {
    # The only reading that meets the size of the noise in the paper's Figure 3. eps does not bind: steps do.
    "linf_pixel_fixed": {"norm": "linf", "space": "pixel", "step_size": "2/255", "step_ratio": 1.0},
    "linf_norm": {"norm": "linf", "space": "normalized", "step_size": "", "step_ratio": 1.0},
    "l2_pixel": {"norm": "l2", "space": "pixel", "step_size": "", "step_ratio": 2.5},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "random": {"objective": "random"},  # noise in the place of the attack
    "advprop": {"objective": "advprop"},  # an attack on the debiased network
    "lam0": {"debiased_weight": 0.0},  # an attack on the biased network alone
}
# Words that change the attack; the first of each is the default.
CHANGES = {"preset": tuple(PRESETS), "numbers": ("supplement", "main"), "ablation": tuple(ABLATIONS)}
CORRUPTIONS = ("gaussian", "salt_pepper", "cutout", "dropout", "rotation", "perspective", "jpeg", "gaussian_blur")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def arguments(text: str | None, ratios: tuple[float, ...], *, preset: str = "linf_pixel_fixed") -> dict[str, Any]:
    """Return the words behind the colon; the first of `ratios` is the default, and `preset` that of the attack.

    Raises:
      InputError: an unknown word or value, or a word that changes an attack that is not there.
    """
    defaults = {name: words[0] for name, words in CHANGES.items()} | {"preset": preset}
    args = common.arguments(text, method="erm", biasadv=False, ratio=f"{ratios[0]:g}", **defaults, runlocal=False)
    for name, words in {"method": COLUMNS, **CHANGES}.items():
        if args[name] not in words:
            raise unknown(name, args[name], words)
    for name, default in defaults.items():
        if args[name] != default and not args["biasadv"]:
            word = f"{name}={args[name]}"
            raise InputError(f"{word} changes the attack of BiasAdv, and there is none: write biasadv,{word}")
    args["ratio"] = _ratio(args["ratio"], ratios)
    return args


def picks_row(text: str | None) -> bool:
    """Return whether the words behind the colon say which row of a table to train.

    >>> picks_row("ratio=5,runlocal"), picks_row("method=erm,runlocal")
    (False, True)
    """
    return any(word.partition("=")[0] in ("method", "biasadv") for word in (text or "").split(","))


def _ratio(text: str, ratios: tuple[float, ...]) -> float:
    """Return the percentage of `ratios` that a text names."""
    try:
        return float(ratios[ratios.index(float(text))])
    except ValueError:
        raise unknown("ratio", text, [f"{ratio:g}" for ratio in ratios]) from None


def base(args: dict[str, Any], table: Table, main: Table | None = None) -> ml_collections.ConfigDict:
    """Return the config of a row with the numbers of its column of `table`, or of `main` where the words ask for it."""
    numbers = column(table, args["method"])
    if args["numbers"] == "main":
        if main is None:
            raise InputError("numbers=main: the main paper has no such data set; expected numbers=supplement")
        numbers |= {row: main[row] for row in ATTACK}
    config = common.base()
    config.data.options = {"ratio": args["ratio"]}
    config.data.augment.flip = True

    config.model = {"name": "resnet18", "dtype": "float32", "weights": ""}
    if numbers["pretrained"]:
        config.model.new_head = True  # of model.weights, which has ImageNet's classes
        config.model.freeze_norm = False  # whether the paper kept ImageNet's batch statistics is unverified

    config.method = method(args, numbers)
    if args["method"] == "jtt":
        config.jtt = {
            "epochs": float(numbers["biased_epochs"]),  # of the first stage
            "copies": numbers["copies"],  # N_up, of each image in the error set
            "count": "total",  # as the papers count; "extra": besides the original, as JTT's code
            "error_set": "eval_pass",  # one pass of the last phi; "online": while it trains, as JTT's code
        }

    config.train.batch_size = numbers["batch_size"]
    config.train.epochs = float(numbers["epochs"])
    config.train.evaluate_examples = 0
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = numbers["learning_rate"]
    config.optimizer.weight_decay = numbers["weight_decay"]
    config.optimizer.update(common.step_decay(numbers["decay_every"], numbers["decay_factor"], numbers["epochs"]))
    evaluation(config)
    return config


def column(table: Table, method: str) -> dict[str, Any]:
    """Return the numbers of one method."""
    i = COLUMNS.index(method)
    return {row: numbers[i] if isinstance(numbers, tuple) else numbers for row, numbers in table.items()}


def method(args: dict[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method section of a row."""
    name = args["method"]
    section: dict[str, Any] = {"name": name if args["biasadv"] or name == "lff" else "standard"}
    if section["name"] in ("erm", "lff"):
        section |= {"q": 0.7, "gce_form": "lff"}  # or "value", whose gradient is 1 / q times as large
    if name == "lff":
        section |= {"weight": "ema_classmax", "alpha": 0.7}  # as LfF's code; "instant" as the formula in print
    if args["biasadv"]:
        section["biasadv"] = {
            "debiased_weight": float(numbers["lambda"]),
            "adv_weight": float(numbers["beta"]),
            "eps": f"{numbers['eps']:g}",
            "num_steps": numbers["steps"],
            **PRESETS[args["preset"]],
            "random_start": False,
            "batch_norm": "eval",  # in the attack; "train": batch statistics
            "auxiliary_norm": True,  # of the debiased network, for bias-adversarial images alone
            "attack_norm": "auxiliary",  # which of its batch norms the attack sees; or "main"
            "objective": "biasadv",
        } | ABLATIONS[args["ablation"]]
    return section


def evaluation(config: ml_collections.ConfigDict) -> None:
    """Add the suites of the paper's tables; `corruptions` of suite bias is Table 6, `gallery` Figure 2."""
    config.evaluation.after_training = ("accuracy", "bias")
    config.evaluation.bias = {
        "corruptions": (),
        "corrupt_at": "native",  # before an image is resized to the network's size, or "resized"; unverified
        "corruption_seed": 0,
        "dropout_cells": (0.02, 0.25),  # of Dropout, in fractions of a side; unverified
        "gallery": 0,  # images with Grad-CAM
        "cam_class": "predicted",  # or "label"; unverified
    }


def normalize(config: ml_collections.ConfigDict, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    """Set the mean and the standard deviation of the channels."""
    config.model.mean, config.model.std = statistics


def crop_of_larger(config: ml_collections.ConfigDict, image_size: int, crop_size: int) -> None:
    """Read images with their shorter side at `image_size`; train on random areas of them, evaluate on the centre."""
    config.data.image_size = image_size
    config.data.options.fit = "crop"
    config.data.augment.update({"crop_size": crop_size, "resized_crop": True})


def runlocal(config: ml_collections.ConfigDict, *, steps: int = 300, biased_epochs: float = 1.0) -> None:
    """Shrink a config so that two CPU cores train and evaluate it in minutes. Its numbers are not the paper's.

    The network becomes the small CNN, and images larger than 36 pixels are read that small.
    """
    statistics = config.model.mean, config.model.std
    config.model = {"name": "small_cnn", "width": 16, "dtype": "float32", "weights": ""}
    normalize(config, statistics)
    if config.data.augment.crop_size:
        config.data.image_size, config.data.augment.crop_size = 36, 32
    elif config.data.image_size:
        config.data.image_size = 32
    if "jtt" in config:
        config.jtt.epochs = biased_epochs
    config.train.steps = steps
    config.train.batch_size = 32
    config.train.log_every_steps = 20
    config.train.evaluate_examples = 128
    config.train.evaluate_every_epochs = 0.0  # only at the end
    config.checkpoint.every_steps = 100
    config.optimizer.learning_rate = 1e-3
    config.evaluation.batch_size = 64
    config.evaluation.examples = 256
    config.evaluation.bias.update({"corruptions": config.evaluation.bias.corruptions[:2]})
    config.evaluation.bias.update({"gallery": min(config.evaluation.bias.gallery, 4)})
