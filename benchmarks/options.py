"""The options that all benchmarks share, and the model they name."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

from configs import clip_shapes
from jrobust.errors import InputError, unknown
from jrobust.models import zoo
from jrobust.models.classifier import Classifier
from jrobust.models.clip.architectures import ARCHITECTURES
from jrobust.models.network import Network

MODEL = "wrn-28-10"
DTYPES = ("float32", "bfloat16")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # CIFAR-10
NUM_CLASSES, INPUT_SHAPE = 10, (32, 32, 3)
SMALL = "small"  # the tower of configs/clip_shapes.py


def classifier(name: str, dtype: str, *, dropout: float = 0.0) -> Classifier:
    """Return the classifier for 32x32 images that `--model` names: wrn-28-10, resnet18, or a name of the zoo.

    Raises:
      InputError: there is no such model.
    """
    section: dict[str, Any]
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        section = {"name": "wide_resnet", "depth": int(wide[1]), "width": int(wide[2]), "dropout": dropout}
    elif name == "resnet18":
        section = {"name": "resnet18_cifar"}
    elif name in zoo.NETWORKS:
        section = {"name": name}
    else:
        raise unknown("--model", name, ("wrn-28-10", "wrn-16-4", "resnet18", *zoo.NETWORKS))
    section |= {"dtype": dtype}
    found = zoo.build(section, num_classes=NUM_CLASSES, input_shape=INPUT_SHAPE, mean=MEAN, std=STD)
    assert isinstance(found, Classifier)
    return found


def network(name: str, dtype: str) -> Network:
    """Return the network that `--model` names: a classifier, or one of CLIP's towers for images of its size.

    A tower is an architecture such as ViT-B/32, or `small`; texts of ten classes are its head.

    Raises:
      InputError: there is no such model.
    """
    if name not in (*ARCHITECTURES, SMALL):
        return classifier(name, dtype)
    sizes: Any = clip_shapes.SIZES if name == SMALL else dataclasses.asdict(ARCHITECTURES[name])
    shape = (sizes["image_size"], sizes["image_size"], 3)
    section = {"name": zoo.CLIP, "sizes": sizes, "dtype": dtype}
    return zoo.build(section, num_classes=NUM_CLASSES, input_shape=shape)


def parser(description: str, models: str = f"{MODEL} (default), wrn-16-4, resnet18, ...") -> argparse.ArgumentParser:
    """Return the options that all benchmarks share; `models` says which there are."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--model", default="", help=models)
    result.add_argument("--batch", type=int, default=0, help="images; default 256, on CPU 16")
    result.add_argument("--repeats", type=int, default=0, help="timed calls of each program; default 20, on CPU 5")
    result.add_argument(
        "--dtype", help="float32, bfloat16 or both, float32,bfloat16; default both, with --local float32"
    )
    result.add_argument("--local", action="store_true", help="tiny sizes: under two minutes on two cores")
    result.add_argument("--output", default="", help="file of JSON lines; default benchmarks/results/...")
    return result


def resolve(options: argparse.Namespace, *, local_model: str, model: str = MODEL) -> argparse.Namespace:
    """Fill in the defaults that depend on the device and on --local; switch the cache of compiled programs off.

    Raises:
      InputError: a value that makes no sense.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are measured
    small = options.local or jax.default_backend() == "cpu"
    options.model = options.model or (local_model if options.local else model)
    options.batch = options.batch or (8 if options.local else 16 if small else 256)
    options.repeats = options.repeats or (3 if options.local else 5 if small else 20)
    default = DTYPES[0] if options.local else ",".join(DTYPES)
    options.dtype = tuple(filter(None, (default if options.dtype is None else options.dtype).split(",")))
    for dtype in options.dtype:
        if dtype not in DTYPES:
            raise unknown("--dtype", dtype, DTYPES)
    for name in ("batch", "repeats", "steps", "image_size", "microbatches"):
        if getattr(options, name, 1) < 1:
            raise InputError(f"--{name.replace('_', '-')}={getattr(options, name)}: expected a positive whole number")
    if not options.dtype:
        raise InputError(f"--dtype is empty: expected {' or '.join(DTYPES)}")
    return options


def words(text: str, option: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return the words of an option, which have commas between.

    Raises:
      InputError: one that is not allowed.
    """
    found = tuple(filter(None, text.split(",")))
    for word in found:
        if word not in allowed:
            raise unknown(option, word, allowed)
    return found


def simulate_devices(count: int) -> None:
    """Give the CPU so many devices; to be called before JAX looks for any. An accelerator keeps those it has."""
    jax.config.update("jax_num_cpu_devices", count)
