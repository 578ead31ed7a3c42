"""How long AutoAttack takes, part by part: with compaction, without it, and as eager PyTorch.

    python benchmarks/autoattack.py --run=RUN --images=1000                   # a trained run of launch/run.py
    python benchmarks/autoattack.py --run=RUN --images=1000 --dtype=bfloat16  # the network's body in bfloat16
    python benchmarks/autoattack.py --local                                   # tiny, about two minutes on two cores

The same images, labels, network and weights go through the parts of AutoAttack `standard` (APGD-CE, APGD-T, FAB-T,
Square), each part on the images that stand after the parts before it, three times over:

    jrobust               rows that are done make room for others in one compiled program (`jrobust.attacks.pool`)
    jrobust, whole batch  the same programs without that: every batch runs to its end
    torch                 the same attacks in eager PyTorch (benchmarks/torch_*.py), one target after the other on the
                          images that stand, as the official code; where PyTorch is installed and has JAX's device

A contender runs once to compile and warm up and then `--repeats` times, the contenders in turns, on a CPU each library
in a process of its own. The table gives, for
each part, the images attacked and broken, the median seconds, seconds for 1,000 attacked images, and the forward and
backward passes of single images that were needed and (jrobust) computed. The last line of each contender is the whole
run. Then: the share of images on whose robustness PyTorch agrees (its random starts are others), and the ratios of
seconds, paired by turn. Rows go to a file of JSON lines.

Without --run the network is freshly initialised, labels are its own predictions, and the radius is half of the one at
which PGD-10 breaks about half of the images. On a CPU that was busy at the start no ratio is printed.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# JAX would take three quarters of a GPU's memory at its start, and PyTorch is to live beside it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
from rich.console import Console

from benchmarks import measure, options, processes, training
from benchmarks.autoattack_contenders import Case, Outcome, contender
from benchmarks.contenders import half_broken, make_case, ours
from jrobust import units
from jrobust.attacks.versions import Budget, title
from jrobust.errors import InputError
from jrobust.models.classifier import Classifier


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "")
    parser.set_defaults(dtype="float32")
    parser.add_argument("--run", default="", help="folder of a trained run, whose test images are attacked")
    parser.add_argument("--data.dir", dest="data_dir", default=None, help="the data, if not where the run found them")
    parser.add_argument("--images", type=int, default=0, help="number of images; default 1,000, with --local 24")
    parser.add_argument("--eps", default="8/255", help="radius of the Linf ball, of a trained run")
    parser.add_argument("--against", default="whole,torch", help="whole, torch, or nothing")
    for name, value in vars(Budget()).items():
        if name != "eot":
            parser.add_argument(f"--{name}", type=int, default=0, help=f"shorter than {value} for a trial")
    chosen = parser.parse_args(arguments)
    batch, chosen.repeats = chosen.batch, chosen.repeats or 3
    chosen = options.resolve(chosen, local_model="small_cnn" if chosen.run else "wrn-10-1")
    chosen.batch = batch or (16 if chosen.local else 128 if jax.default_backend() == "cpu" else 512)
    chosen.images = chosen.images or (24 if chosen.local else 1000)
    short = {"apgd_steps": 20, "fab_steps": 20, "square_queries": 200} if chosen.local else {}
    given = {name: getattr(chosen, name) for name in vars(Budget()) if getattr(chosen, name, 0)}
    budget = Budget(**short | given)
    chosen.budget = budget
    heading = f"{title('standard', budget)}, {chosen.images} images, batch {chosen.batch}"
    return training.conclude(chosen, rows_of, notes, "autoattack", heading)


def rows_of(chosen: Any, dtype: str, console: Console) -> list[dict[str, Any]]:
    """Run all contenders in one type, in turns."""
    budget = chosen.budget
    case = trained_case(chosen, dtype) if chosen.run else fresh_case(chosen, dtype)
    console.print(case.text, highlight=False, soft_wrap=True)
    against = tuple(filter(None, chosen.against.split(",")))
    given = case._replace(params=jax.device_get(case.params), batch_stats=jax.device_get(case.batch_stats))
    place = processes.place(contender, given, chosen.batch, budget, dtype)
    places = {"jrobust": place} | ({"jrobust, whole batch": place} if "whole" in against else {})
    if "torch" in against:
        if obstacle := torch_obstacle(case):
            console.print(f"no comparison with PyTorch: {obstacle}", highlight=False, soft_wrap=True)
        else:
            places["torch"] = processes.place(contender, given, chosen.batch, budget, dtype)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in places}
    for turn in range(chosen.repeats + 1):
        for name, place in places.items():
            begin = time.perf_counter()
            outcome = place.ask("attack", name)
            what = f"turn {turn} of {chosen.repeats}" if turn else "warming up"
            console.print(f"{what}: {name}, {time.perf_counter() - begin:.1f} s", highlight=False)
            outcomes[name] += [outcome] if turn else []
    for place in dict.fromkeys(places.values()):
        place.close()
    reference = outcomes["jrobust"][0].robust
    rows = []
    for name, found in outcomes.items():
        shared = {"model": chosen.run or chosen.model, "dtype": dtype, "batch": chosen.batch, "eps": case.eps}
        shared |= {"budget": vars(budget), "images": len(case.labels), "name": name}
        shared["robust_accuracy"] = float(found[0].robust.mean())
        shared["agreement_with_jrobust"] = float((found[0].robust == reference).mean())
        pairs = [theirs.seconds / own.seconds for theirs, own in zip(found, outcomes["jrobust"], strict=True)]
        shared["speed_of_jrobust_over_this"] = np.quantile(pairs, (0.25, 0.5, 0.75)).tolist()
        for part in zip(*(outcome.parts for outcome in found), strict=True):
            seconds = [measured.seconds for measured in part]
            rows.append(shared | part[0]._asdict() | {"part": part[0].name} | shared | times(seconds, part[0].attacked))
        whole = [outcome.seconds for outcome in found]
        sums = {key: sum(getattr(p, key) for p in found[0].parts) for key in ("broken", "forward", "backward")}
        attacked = found[0].parts[0].attacked
        rows.append(shared | {"part": "all", "attacked": attacked} | sums | times(whole, len(case.labels)))
    return [row | measure.machine() for row in rows]


def times(seconds: Sequence[float], images: int) -> dict[str, Any]:
    """Return the fields of a row that hold seconds."""
    median = float(np.median(seconds))
    quartiles = tuple(np.quantile(seconds, (0.25, 0.75)).tolist())
    per_1000 = 1000 * median / images if images else None
    return {
        "seconds_median": median,
        "seconds_quartiles": quartiles,
        "seconds_per_1000": per_1000,
        "seconds_all": seconds,
    }


def trained_case(chosen: Any, dtype: str) -> Case:
    """Return the network of a run and images of its test split, spread evenly over it."""
    sys.path.insert(0, str(measure.ROOT / "launch"))
    import assembly

    from jrobust.evaluation.batches import choose

    parts, variables, step = assembly.restore(chosen.run, "latest", chosen.data_dir)
    config = parts.config.copy_and_resolve_references().unlock()
    config.model.dtype = dtype
    classifier = assembly.network(config, parts.train)
    if not isinstance(classifier, Classifier):
        raise InputError(
            f"{chosen.run} is a run of model {config.model.name!r}: expected a network with a linear layer"
        )
    index = choose(parts.test, min(chosen.images, len(parts.test)))
    examples = parts.test.examples(index)
    images = np.asarray(examples["image"], np.float32) / np.float32(255)
    text = f"{chosen.run}, step {step}: {len(index)} images of {parts.test.name}, Linf {chosen.eps}"
    labels = np.asarray(examples["label"], np.int32)
    params, batch_stats = variables
    return Case(classifier, params, batch_stats, images, labels, index, units.number(chosen.eps), text)


def fresh_case(chosen: Any, dtype: str) -> Case:
    """Return a fresh network and random images, with its predictions as labels."""
    case = make_case(chosen.model, dtype, chosen.images)
    eps = half_broken(case, ours(case, 10).images, units.number(chosen.eps)) / 2
    text = f"{chosen.model}, freshly initialised: {chosen.images} random images, Linf {eps * 255:.3g}/255"
    images, labels = np.asarray(case.images), np.asarray(case.labels)
    classifier = options.classifier(chosen.model, dtype)
    return Case(classifier, case.params, case.state, images, labels, np.arange(len(labels)), eps, text)


def torch_obstacle(case: Case) -> str | None:
    """Return what stands against a comparison, in one line, or None."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; `pip install 'jrobust[parity]'` installs it"
    from benchmarks import torch_attack

    if torch_attack.device(jax.default_backend()) is None:
        return f"this torch cannot use the {jax.default_backend()} that JAX uses; install its build for that device"
    if torch_attack.port(case.classifier, *jax.device_get((case.params, case.batch_stats))) is None:
        return "this network is not written in benchmarks/torch_attack.py; take a wide ResNet or resnet18"
    return None


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each contender: robust accuracy, agreement and the ratio of seconds."""
    lines = []
    for row in (row for row in rows if row["part"] == "all"):
        text = f"{row['dtype']} {row['name']}: robust accuracy {row['robust_accuracy']:.2%}"
        if row["name"] != "jrobust":
            low, middle, high = row["speed_of_jrobust_over_this"]
            text += f", agrees on {row['agreement_with_jrobust']:.2%} of the images"
            if not measure.is_busy(row):
                text += f"; jrobust is {middle:.2f} times as fast (quartiles {low:.2f} .. {high:.2f})"
        lines.append(text)
    return lines


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
