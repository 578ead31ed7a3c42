"""How fast CLIP is fine-tuned against attacks, and attacked: the steps of PMG-AFT and its baselines, and PGD-10.

    python benchmarks/clip_steps.py --dtype=bfloat16            # ViT-B/32, batch 256: step time, memory, share of peak
    python benchmarks/clip_steps.py --model=ViT-B/16 --batch=128 --image-size=32
    python benchmarks/clip_steps.py --local                     # a small tower, for two cores

The steps are those of configs/pmg_aft_tiny_imagenet.py, as `launch/run.py` compiles them over all devices: gather,
resize to 256 and cut to 224, attack, gradient, update; on random images of --image-size pixels that lie on the device
(64, as Tiny ImageNet's), with random weights and random text features, on which no speed depends. PGD-10 is that of the
suite `zero_shot` on one device: prediction, attack, prediction, for images of the tower's size and of CIFAR's 32, which
are enlarged inside the attack.

It prints a table: images/s, attack steps/s (images x gradient evaluations of the attack / s), median and quartiles of
the seconds of one call, seconds to compile, GFLOP as the compiler counts them, the cost in forward passes of the image
tower, the floor (the passes counted by hand at the device's measured matrix rate), the share of that rate, and the
memory the compiler plans. Then: seconds beside FT-Standard's; whether the text tower is in the step of PMG-AFT, which
is lowered once more with a text tower of one layer and eight words (nothing may change); device, versions, commit and
load. The same is written as JSON lines, one a row; `benchmarks/measure.py` says how each number is made.

What is counted by hand is in benchmarks/passes.py; PGD-k with both predictions is 2 k + 2. PMG-AFT beside the same step
in PyTorch is a row of benchmarks/paper_steps.py.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import options, passes, training
from configs import pmg_aft_tiny_imagenet
from jrobust import methods
from jrobust.attacks import linf, pgd, untargeted
from jrobust.errors import InputError, unknown
from jrobust.methods.network import accuracy
from jrobust.models import zoo
from jrobust.models.clip.architectures import ARCHITECTURES
from jrobust.models.clip.zero_shot import ZeroShot

SMALL = "small"  # the tower of configs/clip_shapes.py
VARIANTS = ("ft", "tecoa", "pmg_aft", "vpt_tecoa", "vpt_pmg_aft")
NUM_CLASSES, IMAGE_SIZE = 200, 64  # Tiny ImageNet
NATIVE = 32  # CIFAR
PGD = "pgd_10"
OTHER_TEXT = {"text_width": 64, "text_heads": 1, "text_layers": 1, "vocabulary": 8, "context": 4}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "", f"{', '.join(ARCHITECTURES)}, or {SMALL}; default ViT-B/32")
    parser.add_argument("--image-size", type=int, default=0, help="of the images on the device; default 64")
    parsed = parser.parse_args(arguments)
    parsed.image_size = parsed.image_size or IMAGE_SIZE
    chosen = options.resolve(parsed, local_model=SMALL, model="ViT-B/32")
    if chosen.model not in (*ARCHITECTURES, SMALL):
        raise unknown("--model", chosen.model, (*ARCHITECTURES, SMALL))
    return training.conclude(chosen, rows_of, notes, "clip_steps", "fine-tuning steps and attacks of CLIP")


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Measure the steps and the attacks in one type, in turns."""
    programs = {}
    for variant in variants(chosen.model):
        console.print(f"{chosen.model} in {dtype}: compiling {variant}", highlight=False)
        programs[variant] = compile_step(variant, chosen.model, dtype, chosen.batch, chosen.image_size)
    programs["pmg_aft"].fields["text_tower_in_step"] = text_tower_in_step(chosen.model, dtype, chosen.batch)
    tower = classifier("ft", chosen.model, dtype)
    for side in dict.fromkeys((tower.resize_to, NATIVE)):
        console.print(f"{chosen.model} in {dtype}: compiling {PGD} of {side} x {side} pixels", highlight=False)
        programs[f"{PGD} {side}x{side}"] = compile_pgd(tower, chosen.batch, side)
    console.print(f"{chosen.model} in {dtype}: measuring", highlight=False)
    return training.timed(
        programs,
        {"model": chosen.model, "dtype": dtype, "batch": chosen.batch, "image_size": chosen.image_size},
        chosen.repeats,
        forward_flops=lambda name: training.forward_flops(
            classifier(name if name in VARIANTS else "ft", chosen.model, dtype), chosen.batch
        ),
        counted=lambda name: counted(name, chosen.model),
        baseline="ft",
    )


def variants(model: str) -> tuple[str, ...]:
    """Return the steps that a model has: a ResNet has no tokens, which the visual prompts of the config need."""
    patch = config_of("ft", model).model.get("sizes") or ARCHITECTURES[model].patch
    return VARIANTS if patch else tuple(name for name in VARIANTS if not name.startswith("vpt_"))


def counted(name: str, model: str) -> float:
    """Return the forward passes' worth of a program, counted by hand; PGD and both predictions are 2 k + 2.

    >>> [counted(name, SMALL) for name in VARIANTS], counted("pgd_10 32x32", SMALL)
    ([3.0, 7.0, 11.0, 6.0, 9.0], 22.0)
    """
    if name.startswith(PGD):
        return 2.0 * config_of("ft", "ViT-B/32").evaluation.zero_shot.num_steps + 2
    config = config_of(name, model)
    found = passes.of_step(config.method, prompts=bool(config.model.get("prompts")))
    assert found is not None
    return found


@functools.cache
def config_of(variant: str, model: str) -> Any:
    """Return the config of a step, with the model."""
    config = pmg_aft_tiny_imagenet.get_config(f"method={variant}" + (",runlocal" if model == SMALL else ""))
    if model != SMALL:
        config.model.architecture = model
        side = ARCHITECTURES[model].image_size
        config.data.augment.update({"resize": side * 8 // 7, "crop_size": side})  # 256 and 224
    return config


def classifier(variant: str, model: str, dtype: str) -> ZeroShot:
    """Return the network of a step."""
    config = config_of(variant, model)
    side = config.data.augment.crop_size
    section = config.model.to_dict() | {"dtype": dtype}
    found = zoo.build(section, num_classes=NUM_CLASSES, input_shape=(side, side, 3))
    assert isinstance(found, ZeroShot)
    return found


def compile_step(variant: str, model: str, dtype: str, batch: int, image_size: int) -> training.Program:
    """Compile the step over all devices and place what it needs."""
    config, network = config_of(variant, model), classifier(variant, model, dtype)
    return training.compile_step(
        config,
        methods.build(config.method, network),
        batch,
        shape=(image_size, image_size, 3),
        num_classes=NUM_CLASSES,
    )


def compile_pgd(network: ZeroShot, batch: int, side: int) -> training.Program:
    """Compile prediction, PGD-10 and prediction on one device, as in evaluation, for images of one size."""
    config = config_of("ft", "ViT-B/32").evaluation.zero_shot
    params, state = jax.jit(network.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((batch, side, side, 3), np.float32))
    labels = jnp.asarray(rng.integers(0, NUM_CLASSES, batch, np.int32))

    def attacked(
        params: Any, state: Any, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, ...]:
        def logits(x: jax.Array) -> jax.Array:
            return network.apply(params, state, x).logits

        found = pgd(
            untargeted(logits, labels),
            images,
            key,
            threat=linf(config.eps),
            step_size=1 / 255,
            num_steps=config.num_steps,
            index=jnp.arange(len(images)),
        )
        return accuracy(logits(images), labels), accuracy(logits(found.adv_images), labels)

    arguments = params, state, images, labels, jax.random.key(1)
    with jax.default_matmul_precision("highest"):  # as the suite
        return training.compile_call(attacked, *arguments, steps=config.num_steps)


def text_tower_in_step(model: str, dtype: str, batch: int) -> bool:
    """Return whether the step of PMG-AFT, as it is lowered, depends on the text tower."""
    network = classifier("pmg_aft", model, dtype)
    sizes = dataclasses.replace(network.clip.sizes, **OTHER_TEXT)
    other = dataclasses.replace(network, clip=dataclasses.replace(network.clip, sizes=sizes))
    config = config_of("pmg_aft", model)
    texts = []
    for tower in (network, other):
        method = methods.build(config.method, tower)
        found, arguments = training.assemble(config, method, batch, (IMAGE_SIZE, IMAGE_SIZE, 3))
        texts.append(jax.jit(found.step).lower(*arguments).as_text())
    return texts[0] != texts[1]


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for every step but FT-Standard's, its seconds over that one's, and one on the text tower."""
    lines = []
    for row in rows:
        begin = f"{row['dtype']} {row['name']}"
        if row["name"] == "ft" and row["forward_flops"]:
            each = row["forward_flops"] / row["batch"]
            lines.append(f"{row['dtype']}: a forward pass of one image is {each / 1e9:.4g} GFLOP")
        if row["name"] in VARIANTS[1:]:
            lines.append(training.beside(row, "ft"))
        if "text_tower_in_step" in row:
            word = "IN THE STEP: it should not be" if row["text_tower_in_step"] else "in no step"
            lines.append(f"{begin}: the text tower is {word}")
    return lines


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
