"""How fast PGD runs, alone and beside the same attack in PyTorch, torchattacks and foolbox.

    python benchmarks/attack_steps.py                                    # WRN-28-10, PGD-10, float32 and bfloat16
    python benchmarks/attack_steps.py --model=resnet18 --batch=128 --against=torch,channels_last,compile
    python benchmarks/attack_steps.py --model=ViT-B/32                   # CLIP's tower before the texts of ten classes
    python benchmarks/attack_steps.py --local                            # tiny, under two minutes on two cores

One compiled program holds all steps of the attack and returns the last iterate. Where PyTorch is installed, and has the
device that JAX uses, the same attack runs in turns with ours, on a CPU in processes of their own: the same network with
the same weights, images, start, radius, step size and steps. `--against` selects: torch (eager), channels_last (eager,
NHWC in memory), compile (torch.compile), compile_channels_last, torchattacks, foolbox (benchmarks/torch_peers.py says
how they are installed and run). One judge, our network in float32, says how strong all results are: mean cross-entropy
at the radius, robust accuracy there and at the smaller radius that breaks about half of the images. A row whose attack
is not as strong as ours is marked so, and the command then ends with status 1.

It prints a table: images/s, attack steps/s (images x gradient evaluations / s), median and quartiles of the seconds of
one attack, seconds to compile (of torch.compile: its first call), GFLOP as the compiler counts them, the cost in
forward passes, the floor (2 passes a step at the device's measured matrix rate), the share of that rate, and the memory
the compiler plans; then the ratios of speed, ours over PyTorch's, paired by turn; device, versions, commit and load.
The same is written as JSON lines, one a row; `benchmarks/measure.py` says how each number is made. On a CPU that was
busy at the start no ratio is printed: the raw seconds are in the file.

The network is freshly initialised, with the batch statistics of its images, and labels are its own predictions. Images
are of CIFAR's size, or of the size of a tower of CLIP.
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# JAX would take three quarters of a GPU's memory at its start, and PyTorch is to live beside it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# OMP_WAIT_POLICY stays as it is. PASSIVE was seen to make PyTorch three times slower on idle cores, and ACTIVE to leave
# its threads spinning through our turns; the default spins for a moment and then sleeps.
# Seconds of compilation are measured, and programs of earlier runs lie on the disk.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

from rich.console import Console

from benchmarks import contenders, measure, options, processes, tables
from jrobust import units
from jrobust.errors import InputError, unknown
from jrobust.training import cost

AGAINST = (*contenders.EAGER, *contenders.PEERS)
DEFAULT = "torch,channels_last,compile,torchattacks,foolbox"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "", "wrn-28-10 (default), wrn-16-4, resnet18, ViT-B/32, ...")
    parser.add_argument("--steps", type=int, default=10, help="gradient evaluations of the attack")
    parser.add_argument("--eps", default="8/255", help="radius of the Linf ball")
    parser.add_argument("--against", default=DEFAULT, help=", ".join(AGAINST) + ", or nothing")
    chosen = options.resolve(parser.parse_args(arguments), local_model="wrn-10-1")
    variants = tuple(filter(None, chosen.against.split(",")))
    for variant in variants:
        if variant not in AGAINST:
            raise unknown("--against", variant, AGAINST)
    console = tables.console()
    obstacles = {variant: contenders.obstacle(chosen.model, variant) for variant in variants}
    for obstacle in dict.fromkeys(filter(None, obstacles.values())):
        console.print(f"not compared: {obstacle}", soft_wrap=True, highlight=False)
    variants = tuple(variant for variant in variants if obstacles[variant] is None)
    load_before = measure.load_average()  # once: later it is this program's own work
    rows = [row for dtype in chosen.dtype for row in rows_of(chosen, dtype, variants, console)]
    rows = [row | {"load_before": load_before, "load_after": measure.load_average()} for row in rows]
    title = f"PGD-{chosen.steps} at eps {chosen.eps}"
    tables.report(rows, title, console, [note for row in rows if (note := _note(row))])
    console.print(f"wrote {measure.write(rows, 'attack_steps', chosen.output, title)}", soft_wrap=True, highlight=False)
    return rows


def rows_of(chosen: Any, dtype: str, variants: Sequence[str], console: Console) -> list[dict[str, Any]]:
    """Measure our attack and the chosen others in one type, in turns."""
    eps, steps = units.number(chosen.eps), chosen.steps
    case = contenders.make_case(chosen.model, dtype, chosen.batch)
    places: dict[str, processes.Place] = {}
    for name in ("jrobust", *variants):
        console.print(f"{chosen.model} in {dtype}: compiling {name}", highlight=False)
        made = (contenders.ours, case, steps) if name == "jrobust" else (contenders.theirs, case, name, steps, eps)
        places[name] = processes.place(*made)
    product, product_flops = cost.matrix_product(dtype)
    console.print(f"{chosen.model} in {dtype}: measuring", highlight=False)
    programs = {name: functools.partial(place.ask, "clock", eps) for name, place in places.items()}
    timings = measure.in_turns({"matrix product": product} | programs, chosen.repeats)
    images = {name: functools.partial(place.ask, "images") for name, place in places.items()}
    half = contenders.half_broken(case, images["jrobust"], eps)
    strengths = {name: contenders.strength(case, images[name], eps, half) for name in places}
    fields = {name: place.ask("row") for name, place in places.items()}
    for place in places.values():
        place.close()
    matrix_rate = product_flops / min(timings["matrix product"].seconds)
    forward = cost.flops(lambda p, s, x: case.network.apply(p, s, x).logits, case.params, case.state, case.images)
    rows = []
    for name in places:
        row = {"name": name, "program": f"pgd-{steps}", "model": chosen.model, "dtype": dtype}
        row |= {"batch": chosen.batch, "steps": steps, "eps": chosen.eps, "half_broken_eps": half}
        row |= timings[name].row() | {"flops": fields["jrobust"]["flops"]} | fields[name]
        row |= measure.rates(row, matrix_rate=matrix_rate, forward_flops=forward, counted=2.0 * steps)
        row |= strengths[name]
        if name != "jrobust":
            row["speed_of_jrobust_over_this"] = measure.ratio(timings[name], timings["jrobust"])
            row["best_over_best"] = min(timings[name].seconds) / min(timings["jrobust"].seconds)
            row["same_strength"] = contenders.same_strength(strengths["jrobust"], strengths[name], dtype, chosen.batch)
        rows.append(row | measure.machine())
    return rows


def _note(row: dict[str, Any]) -> str:
    result = (
        f"cross-entropy {row['result_cross_entropy']:.4f}, robust accuracy {row['result_robust_accuracy']:.1%}, at "
        f"eps {row['half_broken_eps'] * 255:.2g}/255 {row['robust_accuracy_at_half_broken_eps']:.1%}"
    )
    if row["name"] == "jrobust":
        return f"{row['dtype']} jrobust: the result has {result}"
    low, middle, high = row["speed_of_jrobust_over_this"]
    speed = (
        f"jrobust is {middle:.2f} times as fast (quartiles {low:.2f} .. {high:.2f}; best over best "
        f"{row['best_over_best']:.2f})"
    )
    if measure.is_busy(row):
        speed = "no comparison of speed on a busy CPU"
    verdict = "same strength" if row["same_strength"] else "NOT THE SAME STRENGTH, seconds do not compare"
    return f"{row['dtype']} {row['name']}: {speed}; {result}: {verdict}"


if __name__ == "__main__":
    try:
        measured = main()
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(row.get("same_strength", True) for row in measured) else 1)
