"""How fast masked images train a CLIP beside vanilla fine-tuning, and what the relevance map costs in the step.

    python benchmarks/masked_steps.py --dtype=bfloat16          # ViT-B/32, batch 256
    python benchmarks/masked_steps.py --model=ViT-L/14 --batch=64
    python benchmarks/masked_steps.py --local                   # a small tower, for two cores
    python benchmarks/masked_steps.py --model=ViT-B/16 --batch=512 --microbatches=4 --dtype=bfloat16

The steps are those of configs/masked_images_imagenet.py, as `launch/run.py` compiles them over all devices, on random
images of the tower's size that lie on the device, with random weights, on which no speed depends. The rows: ft, vanilla
fine-tuning; fd, and the features of the frozen tower on the same images; object, context and random masks (which, with
what they are refilled: single, multi or none); wise_kd, and a frozen teacher of logits. With none, object hides patches
from the attention and random drops them from the sequence: three of four, as in the released examples.

It prints a table: images/s, median and quartiles of the seconds of one step, seconds to compile, GFLOP as the compiler
counts them, the cost in forward passes of the image tower, the floor (the passes counted by hand, see
benchmarks/passes.py, at the device's measured matrix rate), the share of that rate, and the memory the compiler plans.
Then: seconds beside ft's; the share of the map in a step with object masks, in FLOPs and in seconds, which is the rest
of that step beside the same one with random masks, paired by turn; device, versions, commit and load. The same is
written as JSON lines, one a row; `benchmarks/measure.py` says how each number is made.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from rich.console import Console

from benchmarks import options, passes, training
from configs import masked_images_imagenet
from jrobust import methods
from jrobust.errors import InputError, unknown
from jrobust.models import zoo
from jrobust.models.clip.linear_head import LinearHead

SMALL = "small"  # the tower of configs/clip_shapes.py
VITS = {architecture: word for word, architecture in masked_images_imagenet.ARCHITECTURES.items()}
MAPPED, UNMAPPED = "object single", "random single"  # the same step with and without the map
VARIANTS = {
    "ft": "method=ft",
    "fd": "method=fd",
    MAPPED: "masking=object,refilling=single",
    "object multi": "masking=object,refilling=multi",
    "object none": "masking=object,refilling=none",
    UNMAPPED: "masking=random,refilling=single",
    "random none": "masking=random,refilling=none",
    "wise_kd": "method=wise_kd",
}
LOCAL = tuple(name for name in VARIANTS if name not in ("object multi", "object none"))  # for the time to compile
NUM_CLASSES = 1000  # ImageNet


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "", f"{', '.join(VITS)}, or {SMALL}; default ViT-B/32")
    parser.add_argument("--microbatches", type=int, default=1, help="equal parts of the batch, one after the other")
    chosen = options.resolve(parser.parse_args(arguments), local_model=SMALL, model="ViT-B/32")
    if chosen.model not in (*VITS, SMALL):
        raise unknown("--model", chosen.model, (*VITS, SMALL))
    return training.conclude(chosen, rows_of, notes, "masked_steps", "fine-tuning steps of CLIP with masked images")


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Measure the steps in one type, in turns."""
    programs = {}
    for name in VARIANTS if not chosen.local else LOCAL:
        console.print(f"{chosen.model} in {dtype}: compiling {name}", highlight=False)
        programs[name] = compile_step(name, chosen.model, dtype, chosen.batch, chosen.microbatches)
    console.print(f"{chosen.model} in {dtype}: measuring", highlight=False)
    network = classifier("ft", chosen.model, dtype)
    rows = training.timed(
        programs,
        {"model": chosen.model, "dtype": dtype, "batch": chosen.batch, "microbatches": chosen.microbatches},
        chosen.repeats,
        forward_flops=lambda name: training.forward_flops(network, chosen.batch),
        counted=lambda name: counted(name, chosen.model),
        baseline="ft",
    )
    by_name = {row["name"]: row for row in rows}
    by_name[MAPPED] |= map_share(by_name[MAPPED], by_name[UNMAPPED])
    return rows


def map_share(mapped: dict[str, Any], unmapped: dict[str, Any]) -> dict[str, Any]:
    """Return the share of the map in the step that has it, of FLOPs and of seconds with quartiles, paired by turn."""
    shares = 1 - np.asarray(unmapped["seconds_all"]) / np.asarray(mapped["seconds_all"])
    flops = None if mapped["flops"] is None else 1 - unmapped["flops"] / mapped["flops"]
    return {"map_share_of_flops": flops, "map_share_of_seconds": np.quantile(shares, (0.25, 0.5, 0.75)).tolist()}


def counted(name: str, model: str) -> float:
    """Return the forward passes' worth of a step, counted by hand.

    >>> [counted(name, "ViT-B/32") for name in VARIANTS]
    [3.0, 4.0, 8.0, 8.0, 8.0, 7.0, 4.04, 9.0]
    """
    tokens = 1 + classifier(name, model, "float32").clip.patches() ** 2
    found = passes.of_step(config_of(name, model).method, tokens=tokens)
    assert found is not None
    return found


@functools.cache
def config_of(name: str, model: str) -> Any:
    """Return the config of a step, with the model."""
    size = "runlocal" if model == SMALL else f"vit={VITS[model]}"
    return masked_images_imagenet.get_config(f"{VARIANTS[name]},{size}")


def classifier(name: str, model: str, dtype: str) -> LinearHead:
    """Return the network of a step."""
    config = config_of(name, model)
    side = config.data.image_size
    section = config.model.to_dict() | {"dtype": dtype}
    found = zoo.build(section, num_classes=NUM_CLASSES, input_shape=(side, side, 3))
    assert isinstance(found, LinearHead)
    return found


def compile_step(name: str, model: str, dtype: str, batch: int, microbatches: int = 1) -> training.Program:
    """Compile the step over all devices and place what it needs."""
    config, network = config_of(name, model).copy_and_resolve_references(), classifier(name, model, dtype)
    config.train.microbatches = microbatches
    if "groups" in config.method:  # as in the config: donors are within a quarter of the batch, or within its part
        config.method.groups = 4 // min(microbatches, 4)
    return training.compile_step(
        config,
        methods.build(config.method, network),
        batch,
        shape=network.input_shape,
        num_classes=NUM_CLASSES,
    )


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for every step but vanilla fine-tuning, its seconds over that one's, and one on the map."""
    lines = []
    for row in rows:
        lines += [training.beside(row, "ft")] if row["name"] != "ft" else []
        if "map_share_of_seconds" in row:
            low, middle, high = (100 * share for share in row["map_share_of_seconds"])
            flops = "" if row["map_share_of_flops"] is None else f"{row['map_share_of_flops']:.1%} of its FLOPs and "
            seconds = f"{middle:.1f}% of its seconds (quartiles {low:.1f} .. {high:.1f})"
            lines.append(
                f"{row['dtype']} {row['name']}: the map is {flops}{seconds}; one pass of {row['passes_counted']:.0f}"
            )
    return lines


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
