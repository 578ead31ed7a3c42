"""How fast one training step runs: natural, PGD-10, ART, LfF and LfF + BiasAdv, as `launch/run.py` compiles them.

    python benchmarks/train_steps.py                                     # WRN-28-10, float32 and bfloat16
    python benchmarks/train_steps.py --model=wrn-16-4 --batch=128 --mode=pmap
    python benchmarks/train_steps.py --local                             # tiny, under two minutes on two cores

The methods are those of configs/art_cifar10.py (ART: three steps on the attribution; PGD: ten steps) and of
configs/biasadv_cifar10c.py (LfF: two networks; BiasAdv: five steps), with their augmentation and optimizer, on random
images that lie on the device. A step is the whole compiled program: gather, augment, attack, gradient, update; it runs
over all devices. The methods are measured in turns.

It prints a table: images/s, attack steps/s (images x gradient evaluations of the attack / s), median and quartiles of
the seconds of one step, seconds to compile, GFLOP as the compiler counts them, the cost in forward passes, the floor
(the passes counted by hand at the device's measured matrix rate), the share of that rate, and the memory the compiler
plans; then what a step costs beside a natural one; device, versions, commit and load. The same is written as JSON
lines, one a row; `benchmarks/measure.py` says how each number is made, benchmarks/passes.py what is counted by hand.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from rich.console import Console

from benchmarks import options, passes, training
from configs import art_cifar10, biasadv_cifar10c
from jrobust import methods
from jrobust.errors import InputError
from jrobust.training import parallel

VARIANTS = ("natural", "pgd", "art", "lff", "biasadv")
BIASADV = {"lff": "method=lff", "biasadv": "method=lff,biasadv"}
NUM_EXAMPLES = 50_000  # rows of LfF's table


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "")
    parser.add_argument("--mode", default="jit", help=" or ".join(parallel.MODES))
    chosen = options.resolve(parser.parse_args(arguments), local_model="small_cnn")
    parallel.check_mode(chosen.mode)
    parallel.check_divisible(chosen.batch, parallel.make_mesh())
    return training.conclude(chosen, rows_of, notes, "train_steps", "training steps")


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Measure the steps in one type, in turns."""
    programs = {}
    for variant in VARIANTS:
        console.print(f"{chosen.model} in {dtype}: compiling {variant}", highlight=False)
        programs[variant] = compile_step(variant, chosen.model, dtype, chosen.batch, chosen.mode)
    console.print(f"{chosen.model} in {dtype}: measuring", highlight=False)
    forward = training.forward_flops(options.classifier(chosen.model, dtype), chosen.batch)
    return training.timed(
        programs,
        {"model": chosen.model, "dtype": dtype, "mode": chosen.mode, "batch": chosen.batch},
        chosen.repeats,
        forward_flops=lambda name: forward,
        counted=counted,
        baseline="natural",
    )


def counted(variant: str) -> float:
    """Return the forward passes' worth of convolutions in a step, counted by hand.

    >>> [counted(variant) for variant in VARIANTS]
    [3.0, 23.0, 41.0, 6.0, 29.0]
    """
    found = passes.of_step(get_config(variant).method)
    assert found is not None
    return found


def get_config(variant: str) -> Any:
    """Return the config of a step."""
    if variant in BIASADV:
        return biasadv_cifar10c.get_config(BIASADV[variant])
    return art_cifar10.get_config(f"variant={variant}")


def make_method(variant: str, model: str, dtype: str) -> Any:
    """Return the method of a step's config on the model, with the dropout of configs/art_cifar10.py."""
    classifier = options.classifier(model, dtype, dropout=art_cifar10.get_config().model.dropout)
    section = get_config(variant).method
    return methods.build(section, classifier, num_examples=NUM_EXAMPLES)


def compile_step(variant: str, model: str, dtype: str, batch: int, mode: str) -> training.Program:
    """Compile the step over all devices and place what it needs."""
    config = get_config(variant)
    config.train.parallelism = mode
    return training.compile_step(
        config,
        make_method(variant, model, dtype),
        batch,
        shape=options.INPUT_SHAPE,
        num_classes=options.NUM_CLASSES,
    )


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for every step but the natural: its seconds over a natural step's."""
    return [training.beside(row, "natural") for row in rows if row["name"] != "natural"]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
