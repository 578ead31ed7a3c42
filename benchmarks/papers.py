"""The training steps of the papers: their configs, and what a step of both libraries starts from.

pgd is adversarial training with PGD-10 (configs/fsr_cifar10.py:method=at); fsr the same with the FSR module; biasadv is
LfF with bias-adversarial images of five steps (configs/biasadv_cifar10c.py); art has three steps on the attribution
(configs/art_cifar10.py), without dropout. These are of a network for 32x32 images, those of CLIP of a tower: pmg_aft
(configs/pmg_aft_tiny_imagenet.py), and masked_images with object masks that are refilled from one other image
(configs/masked_images_imagenet.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import clip_steps, masked_steps, options
from configs import art_cifar10, biasadv_cifar10c, fsr_cifar10
from jrobust import keys, methods, units
from jrobust.attacks import linf
from jrobust.models import fsr, zoo
from jrobust.models.clip import zero_shot
from jrobust.replicated import Replicated
from jrobust.training.method import Variables

OF_CLIP = ("pmg_aft", "masked_images")
METHODS = ("pgd", "fsr", "biasadv", "art", *OF_CLIP)
NUM_EXAMPLES = 50_000  # rows of LfF's table
CLASSES_AN_IMAGE = 200 / 256  # of PMG-AFT, whose public code encodes the texts of all classes in every pass
FROZEN = {"pmg_aft": "tower", "masked_images": "pretrained"}  # where the state has the frozen tower
RADII = ("eps", "step_size")
FAST: Any = {"xla_backend_optimization_level": 0}  # to compile


class Step(NamedTuple):
    """A training step.

    Attributes:
      name: of `METHODS`.
      config: its augmentation and its optimizer are those of the step.
      method: on its network.
      shape: of an image on the device.
    """

    name: str
    config: Any
    method: Any
    shape: tuple[int, int, int]


class Given(NamedTuple):
    """What both libraries start from, on the host.

    Attributes:
      params, batch_stats: as the method's `init` returns them; of CLIP, {"whole": both towers, "head"} without any.
      frozen: both towers of CLIP as they are kept beside those that are trained, else None.
      images: float[B, H, W, C] in [0, 1].
      labels: of the images.
      texts: ids of the classes' texts int[K, T], of CLIP.
      draws: the random numbers of the first step, by name, images as [B, H, W, C].
      method, optimizer: numbers of the config, in pixel units of [0, 1].
    """

    params: Any
    batch_stats: Any
    frozen: Any
    images: np.ndarray
    labels: np.ndarray
    texts: np.ndarray | None
    draws: dict[str, np.ndarray]
    method: dict[str, Any]
    optimizer: dict[str, Any]


def make_step(name: str, model: str, dtype: str, batch: int) -> Step:
    """Return the step on the model that `--model` or, of CLIP, `--tower` names."""
    config = config_of(name, model)
    return _assemble(name, config, _network(name, model, dtype, batch), (64, 64, 3) if name == "pmg_aft" else None)


def small_step(name: str, model: str, batch: int, num_steps: int = 2) -> Step:
    """Return the step on a narrow network of the same kind in float64, with so many steps of the attack."""
    model = clip_steps.SMALL if name in OF_CLIP else "wrn-10-1" if model.startswith("wrn") else model
    config, network = config_of(name, model), _network(name, model, "float64", batch)
    attack = config.method.get("biasadv", config.method)
    if "num_steps" in attack:
        attack.num_steps = num_steps
    if model == "resnet18":
        network = dataclasses.replace(network, module=network.module.clone(width=8))
    if name in OF_CLIP:
        sizes = dataclasses.replace(network.clip.sizes, image_layers=2, **clip_steps.OTHER_TEXT)
        network = dataclasses.replace(network, clip=dataclasses.replace(network.clip, sizes=sizes))
    return _assemble(name, config, network)


def _assemble(name: str, config: Any, network: Any, shape: Any = None) -> Step:
    method = methods.build(config.method, network, num_examples=NUM_EXAMPLES)
    return Step(name, config, method, shape or network.input_shape)


def config_of(name: str, model: str) -> Any:
    """Return the config of a step; it may be changed."""
    if name == "pmg_aft":
        return clip_steps.config_of(name, model).copy_and_resolve_references()
    if name == "masked_images":
        config = masked_steps.config_of(masked_steps.MAPPED, model).copy_and_resolve_references()
        config.method.groups = 1  # donors are of the whole batch of a device
        return config
    if name == "art":
        return art_cifar10.get_config("variant=art")
    if name == "biasadv":
        return biasadv_cifar10c.get_config("method=lff,biasadv")
    return fsr_cifar10.get_config("method=at,fsr" if name == "fsr" else "method=at")


def _network(name: str, model: str, dtype: str, batch: int) -> Any:
    """Return the network of a step, without dropout."""
    if name == "masked_images":
        return masked_steps.classifier(masked_steps.MAPPED, model, dtype)
    if name == "pmg_aft":
        found = clip_steps.classifier(name, model, dtype)
        return dataclasses.replace(found, num_classes=max(2, round(CLASSES_AN_IMAGE * batch)))
    if name == "fsr":
        section = config_of(name, model).model.to_dict() | {"dtype": dtype, "mean": options.MEAN, "std": options.STD}
        return zoo.build(section, num_classes=options.NUM_CLASSES, input_shape=options.INPUT_SHAPE)
    return options.classifier(model, dtype)


def once(function: Callable, *arguments: Any) -> Any:
    """Call a function compiled, where that is to take less time than to run."""
    return jax.jit(function).lower(*arguments).compile(compiler_options=FAST)(*arguments)


def first_step(step: Step, batch: int) -> tuple[Given, Any]:
    """Return what both libraries start from, and the arguments of our loss."""
    method, rng = step.method, np.random.default_rng(0)
    network = method.classifier
    images = rng.random((batch, *network.input_shape), np.float32).astype(_dtype(network))
    labels = rng.integers(0, network.num_classes, batch, np.int32)
    if step.name in OF_CLIP:
        variables, found = _of_clip(step, rng)
    else:
        variables = Variables(*once(method.init, jax.random.key(0, impl="rbg"), {}))  # compiles four times faster
        batch_stats = {name: value for name, value in variables.state.items() if name != "losses"}
        found = {"params": variables.params, "batch_stats": batch_stats, "frozen": None, "texts": None}
    examples, key = {"image": images, "label": labels, "index": np.arange(batch, dtype=np.int32)}, jax.random.key(1)
    found["draws"] = once(functools.partial(draws, step), examples, key)
    start = Given(
        **jax.device_get(found),
        images=images,
        labels=labels,
        method=numbers(step.config.method.to_dict()) | {"num_examples": NUM_EXAMPLES},
        optimizer=step.config.optimizer.to_dict(),
    )
    return start, (*variables, examples, key)


def _dtype(network: Any) -> Any:
    """Return the type of a network's images."""
    body = network.clip if hasattr(network, "clip") else network.module
    return np.float64 if body.dtype == "float64" else np.float32


def _of_clip(step: Step, rng: np.random.Generator) -> tuple[Variables, dict[str, Any]]:
    """Return variables with random towers, and what PyTorch has to know of them; the frozen tower is another.

    Were it the one that is trained, as it is at the start, no term of its distance would be in the first loss.
    """
    network = step.method.classifier
    clip, key = network.clip, jax.random.key(0)

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        center = 1.0 if path[-1].key == "scale" else 0.0  # of layer norms
        return (center + 0.05 * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)

    whole = jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(clip.init, key))
    texts = rng.integers(0, clip.sizes.vocabulary, (network.num_classes, clip.sizes.context), np.int32)
    features = rng.standard_normal((network.num_classes, clip.sizes.embed_dim)).astype(_dtype(network))
    if step.name == "pmg_aft":
        features = once(functools.partial(zero_shot.class_features, clip), whole, texts[:, None])
    else:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    fresh = Variables(*jax.eval_shape(step.method.init, key, {}))
    variables = step.method.start_from(fresh, lambda old: Variables(*network.pretrained(old.params, whole, features)))
    image = jax.tree.map(lambda leaf: 0.9 * leaf + leaf.dtype.type(0.1) * np.roll(leaf, 1), whole["image"])
    state = variables.state | {FROZEN[step.name]: Replicated(image)}
    params = {"whole": whole, "head": variables.params.get("head")}
    found = {"params": params, "batch_stats": {}, "frozen": whole | {"image": image}, "texts": texts}
    return Variables(variables.params, state), found


def numbers(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section of a config with its radii as numbers."""
    return {
        name: numbers(value) if isinstance(value, dict) else units.number(value) if name in RADII else value
        for name, value in section.items()
    }


def draws(step: Step, examples: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """Return what the method draws from a key: the start of the attack, the noise of the mask, the donors."""
    name, index, images = step.name, examples["index"], examples["image"]
    if name == "biasadv":
        return {}
    if name == "masked_images":
        (donors_key,) = jax.random.split(jax.random.split(key)[1], 1)
        return {"donors": jax.random.permutation(donors_key, len(images))}
    first = jax.random.split(key, 2 if name == "pmg_aft" else 3)
    base = step.method.base if name == "fsr" else step.method
    start_key = jax.random.split(first[0], 3)[0] if name == "art" else first[0]
    found = {"start": jax.vmap(linf(base.eps).random_start)(keys.per_example(start_key, index), images)}
    if name == "fsr":
        side, channels = images.shape[1] // 8, 8 * base.classifier.module.width
        drawn = keys.per_example(first[2], index)
        u = fsr.uniforms(drawn, fsr.FIRST_NUMBER + 3, (2, side, side, channels), images.dtype)
        found["noise"] = fsr.gumbel_noise(u[:, 0], u[:, 1])
    return found
