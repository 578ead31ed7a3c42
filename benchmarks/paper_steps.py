"""How fast a training step of each paper runs, beside the same step written plainly in PyTorch as its public code does.

    python benchmarks/paper_steps.py                                     # ResNet-18, and CLIP's ViT-B/32
    python benchmarks/paper_steps.py --model=wrn-16-4 --methods=pgd,art
    python benchmarks/paper_steps.py --local                             # tiny, for two cores

The steps are those of benchmarks/papers.py, of --model and, the last two, of the CLIP --tower; of CLIP's there are half
as many images in a batch, so that all of this takes about ten minutes on two cores. Ours are the compiled program that
`launch/run.py` runs, gather and augmentation included; PyTorch's (benchmarks/torch_steps.py) get images that are
augmented and lie on the device. Both have the optimizer of the config. PMG-AFT has as many classes for each image of
the batch as in the paper. On a CPU each library has a process of its own, and they are timed in turns.

In the same run both compute the loss of a first step from the same weights, images and random numbers (the start of the
attack, the noise of the mask, the donors of patches): in float64, of four images, with two steps of the attack, by the
same code on a small network of its kind (WRN-10-1, ResNet-18 of an eighth of the width, a ViT of two layers). A row
whose loss is another by more than 1e-7 of it is marked so, and the command then ends with status 1. In float32 losses
of the full size say less: attacks take signs, and rounding may decide those of gradients near zero.

The table: images/s, median and quartiles of the seconds of a step, seconds to compile, GFLOP as the compiler counts
them, the share of the device's measured matrix rate, and our speed over PyTorch's, paired by turn. The same is written
as JSON lines, one a row; `benchmarks/measure.py` says how each number is made.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is to live beside JAX on a GPU

import jax
from rich.console import Console

from benchmarks import clip_steps, contenders, measure, options, papers, processes, training
from jrobust.errors import InputError
from jrobust.models.clip.architectures import ARCHITECTURES
from jrobust.training import cost

LOSS_TOLERANCE = 1e-7  # relative, in float64: LfF's table has losses in float32, all else is equal to 1e-15
CHECKED = 4  # images of it
TOWERS = (clip_steps.SMALL, *(name for name, sizes in ARCHITECTURES.items() if sizes.patch))


class Contender(NamedTuple):
    """The step of one library.

    Attributes:
      program: takes the next step.
      fields: of its row.
    """

    program: Any
    fields: dict[str, Any]

    def clock(self) -> measure.Clock:
        """Take a step and return its seconds."""
        return measure.clock(self.program)

    def row(self) -> dict[str, Any]:
        """Return the fields of its row."""
        return self.fields


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "")
    parser.set_defaults(dtype="float32")
    parser.add_argument("--tower", default="", help=f"of CLIP's steps: {', '.join(TOWERS)}; default ViT-B/32")
    parser.add_argument("--methods", default=",".join(papers.METHODS), help="with commas between")
    chosen = options.resolve(parser.parse_args(arguments), local_model="wrn-10-1", model="resnet18")
    chosen.tower = chosen.tower or (clip_steps.SMALL if chosen.local else "ViT-B/32")
    chosen.methods = options.words(chosen.methods, "--methods", papers.METHODS)
    options.words(chosen.tower, "--tower", TOWERS)
    if chosen.model != "resnet18":  # PyTorch's FSR module is written for it alone
        chosen.methods = tuple(name for name in chosen.methods if name != "fsr")
    options.classifier(chosen.model, "float32")  # no tower of CLIP: that is --tower
    if obstacle := contenders.obstacle(chosen.model, "torch"):
        raise InputError(f"no comparison: {obstacle}")
    return training.conclude(chosen, rows_of, notes, "paper_steps", "training steps beside PyTorch's")


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Measure the steps of both libraries in one type, in turns."""
    places: dict[str, processes.Place] = {}
    sizes = {}
    for name in chosen.methods:
        model, batch = sizes[name] = size_of(chosen, name)
        console.print(f"{model} in {dtype}: compiling {name}", highlight=False)
        places[f"{name} jrobust"] = processes.place(ours, name, model, dtype, batch)
        places[f"{name} torch"] = processes.place(theirs, name, model, dtype, batch)
    product, product_flops = cost.matrix_product(dtype)
    console.print(f"measuring in {dtype}", highlight=False)
    programs: dict[str, Any] = {key: functools.partial(place.ask, "clock") for key, place in places.items()}
    timings = measure.in_turns(programs | {"matrix product": product}, chosen.repeats)
    fields = {key: place.ask("row") for key, place in places.items()}
    for place in places.values():
        place.close()
    matrix_rate = product_flops / min(timings["matrix product"].seconds)
    rows = []
    for key, timing in ((key, timings[key]) for key in places):
        name, library = key.split()
        (model, batch), own = sizes[name], f"{name} jrobust"
        row: dict[str, Any] = {"name": key, "program": name, "model": model, "dtype": dtype, "batch": batch}
        row |= {"flops": fields[own]["flops"]} | timing.row() | fields[key]
        row |= {"images_per_second": batch / row["seconds_median"], "matrix_flops_per_second": matrix_rate}
        if row["flops"]:
            row["share"] = row["flops"] / row["seconds_median"] / matrix_rate
        if library == "torch":
            row["speed_of_jrobust_over_this"] = measure.ratio(timing, timings[own])
        rows.append(row | measure.machine())
    return rows


def size_of(chosen: Any, name: str) -> tuple[str, int]:
    """Return the model and the batch of a step."""
    return (chosen.tower, max(2, chosen.batch // 2)) if name in papers.OF_CLIP else (chosen.model, chosen.batch)


def ours(name: str, model: str, dtype: str, batch: int) -> Contender:
    """Return this library's step, compiled."""
    step = papers.make_step(name, model, dtype, batch)
    classes = step.method.classifier.num_classes
    program = training.compile_step(step.config, step.method, batch, shape=step.shape, num_classes=classes)
    return Contender(program.run, program.fields)


def theirs(name: str, model: str, dtype: str, batch: int) -> Contender:
    """Return PyTorch's step, and what its first loss and ours are."""
    import torch

    first, expected = first_losses(name, model)
    start, _ = papers.first_step(step := papers.make_step(name, model, dtype, batch), batch)
    program = torch_step(step, start, bfloat16=dtype == "bfloat16")
    fields = {"torch_threads": torch.get_num_threads(), "first_loss": first, "expected_loss": expected}
    return Contender(program, fields | {"same_loss": abs(first - expected) <= LOSS_TOLERANCE * abs(expected)})


def torch_step(step: papers.Step, start: papers.Given, *, bfloat16: bool = False) -> Any:
    """Return what takes PyTorch's next step and returns its loss."""
    from benchmarks import torch_attack, torch_steps

    where = torch_attack.device(jax.default_backend())
    assert where is not None
    return torch_steps.make_step(step.name, step.method.classifier, start, where=where, bfloat16=bfloat16)


def first_losses(name: str, model: str) -> tuple[float, float]:
    """Return PyTorch's loss of a first step on a narrow network in float64, and ours."""
    with jax.enable_x64(True):
        step = papers.small_step(name, model, CHECKED)
        start, arguments = papers.first_step(step, CHECKED)
        ours = papers.once(lambda *given: step.method.loss(*given)[0], *arguments)
        return torch_step(step, start)(), float(ours)


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for every step of PyTorch."""
    lines = []
    for row in (row for row in rows if "same_loss" in row):
        low, middle, high = row["speed_of_jrobust_over_this"]
        speed = f"jrobust is {middle:.2f} times as fast (quartiles {low:.2f} .. {high:.2f})"
        busy = "no comparison of speed on a busy CPU"
        verdict = "the same" if row["same_loss"] else "NOT THE SAME, seconds do not compare"
        apart = abs(row["first_loss"] / row["expected_loss"] - 1)
        losses = f"first loss {row['first_loss']:.7f}, ours apart by {apart:.0e} of it: {verdict}"
        lines.append(f"{row['dtype']} {row['name']}: {busy if measure.is_busy(row) else speed}; {losses}")
    return lines


if __name__ == "__main__":
    try:
        measured = main()
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(row.get("same_loss", True) for row in measured) else 1)
