"""From a config section to a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.errors import InputError, unknown
from jrobust.models.classifier import Classifier
from jrobust.models.clip import sections
from jrobust.models.fsr import Separation
from jrobust.models.layers import he_fan_in, he_fan_out
from jrobust.models.network import Network
from jrobust.models.resnet import ResNet
from jrobust.models.small_cnn import MLP, SmallCNN
from jrobust.models.vgg import VGG
from jrobust.models.wide_resnet import WideResNet

# The CIFAR ResNets of He et al., 6 n + 2 layers with parameter-free shortcuts.
HE_CIFAR = {"width": 16, "stem": "cifar", "shortcut": "pad", "kernel_init": he_fan_in, "head_init": he_fan_in}

# Name -> (module class, fields that the name sets, fields a config may set).
NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[str, ...]]] = {
    "wide_resnet": (WideResNet, {}, ("depth", "width", "dropout", "remat")),
    "resnet18": (ResNet, {"stages": (2, 2, 2, 2), "kernel_init": he_fan_out}, ("last_stride", "remat")),
    "resnet50": (
        ResNet,
        {"stages": (3, 4, 6, 3), "bottleneck": True, "kernel_init": he_fan_out},
        ("last_stride", "remat"),
    ),
    "resnet18_cifar": (ResNet, {"stages": (2, 2, 2, 2), "stem": "cifar"}, ("remat",)),
    "resnet20_cifar": (ResNet, {"stages": (3, 3, 3), **HE_CIFAR}, ("remat",)),
    "resnet56_cifar": (ResNet, {"stages": (9, 9, 9), **HE_CIFAR}, ("remat",)),
    "vgg16": (VGG, {"batch_norm": False, "grid": 7, "hidden": 4096, "dropout": 0.5}, ("width", "hidden", "dropout")),
    "vgg16_cifar": (VGG, {}, ()),
    "small_cnn": (SmallCNN, {}, ("width", "dropout")),
    "mlp": (MLP, {}, ("depth", "width", "dropout")),
}
# Fields of every model; `weights` (a file to start from) and `new_head` (all but its head) are for the caller.
COMMON = ("name", "dtype", "mean", "std", "resize_to", "freeze_norm", "fsr", "weights", "new_head")
DTYPES = ("float32", "bfloat16", "float64")
CLIP = "clip"


def build(
    config_model: Mapping[str, Any],
    *,
    num_classes: int,
    input_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Network:
    """Return the model that a config section names; "clip" is one of `jrobust.models.clip.sections`.

    Args:
      config_model: `name`, one of `NETWORKS`; `dtype` of the body; the network's own fields, such as depth and width;
        `resize_to`; `freeze_norm`, for fine-tuning; `mean` and `std` of the channels, unless given here; `fsr`, a
        section of the fields of `jrobust.models.fsr.Separation`, empty or None for a network without that module. A
        ConfigDict or a dict.
      num_classes: width of the head.
      input_shape: (H, W, C) of the images.
      mean, std: of the channels, in units of [0, 1].

    Raises:
      InputError: an unknown name, a field that this network has not, or a value out of range.
    """
    config = dict(config_model)
    name = config.get("name", "")
    if name == CLIP:
        given = {"mean": mean, "std": std} if mean is not None and std is not None else {}
        return sections.build(config | given, num_classes=num_classes, input_shape=input_shape)
    if name not in NETWORKS:
        raise unknown("model", name, (*NETWORKS, CLIP))
    network, fixed, settable = NETWORKS[name]
    for field in config:
        if field not in settable and field not in COMMON:
            raise unknown(f"field of model {name!r}", field, (*settable, *COMMON))
    settings = {field: config[field] for field in settable if field in config}
    _check(name, settings)
    dtype = config.get("dtype", "float32")
    if dtype not in DTYPES:
        raise unknown("model.dtype", dtype, DTYPES)
    if dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise InputError("model.dtype is float64, which JAX has switched off: set JAX_ENABLE_X64=1 or use float32")
    mean = config.get("mean", ()) if mean is None else mean
    std = config.get("std", ()) if std is None else std
    if not tuple(mean) or not tuple(std):
        raise InputError(
            "model.mean and model.std are not set: expected one number for each channel, in units of [0, 1]"
        )
    module = network(num_classes=num_classes, dtype=jnp.dtype(dtype), **fixed | settings)
    if config.get("fsr"):
        module = module.clone(fsr=_separation(name, config["fsr"], getattr(module, "blocks", ())))
    return Classifier(
        module,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        num_classes=num_classes,
        input_shape=tuple(input_shape),  # type: ignore[arg-type]
        resize_to=config.get("resize_to") or None,
        freeze_norm=_frozen(fixed | config),
    )


def _frozen(config: Mapping[str, Any]) -> bool:
    """Return model.freeze_norm; raise InputError where train mode is for more than batch norm."""
    if not config.get("freeze_norm"):
        return False
    if config.get("dropout") or config.get("fsr"):
        raise InputError("model.freeze_norm would switch off dropout and the noise of masks: leave it, or those, out")
    return True


def _check(name: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError for a value that the network cannot take."""
    for field in ("depth", "width", "hidden"):
        if field in settings and settings[field] < 1:
            raise InputError(f"model.{field} is {settings[field]}: expected a positive whole number")
    if settings.get("last_stride", 2) not in (1, 2):
        raise InputError(f"model.last_stride is {settings['last_stride']}: expected 1 or 2")
    if not 0 <= settings.get("dropout", 0.0) < 1:
        raise InputError(f"model.dropout is {settings['dropout']}: expected a rate of at least 0 and below 1")
    if name == "wide_resnet" and (settings.get("depth", 28) < 10 or (settings.get("depth", 28) - 4) % 6):
        raise InputError(f"model.depth is {settings['depth']}: a wide ResNet has depth 6 n + 4, such as 10, 16, 28, 40")


def _separation(name: str, section: Mapping[str, Any], blocks: Sequence[str]) -> Separation:
    """Return the settings of a section; without positions, the one of the released code: block4, or the last."""
    if not blocks:
        raise InputError(f"model {name!r} has no feature map for an FSR module: leave model.fsr empty")
    fields = [field.name for field in dataclasses.fields(Separation)]
    for field in section:
        if field not in fields:
            raise unknown("field of model.fsr", field, fields)
    settings = {"positions": section.get("positions") or (blocks[min(4, len(blocks)) - 1],)}
    separation = Separation(**dict(section) | settings)
    separation.check_positions(blocks)
    return separation


def count(params: Any) -> int:
    """Return the number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def describe(classifier: Classifier) -> str:
    """Return the parameter count and a table of the top-level layers, without computing anything."""
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0))
    rows = [(name, count(layer)) for name, layer in params.items()]
    height, width, channels = classifier.input_shape
    network = type(classifier.module).__name__
    size = f"images {height}x{width}x{channels}, {classifier.num_classes} classes"
    return "\n".join(
        [f"{network}: {count(params):,} parameters, {size}", *(f"  {name:<12} {number:>12,}" for name, number in rows)]
    )
