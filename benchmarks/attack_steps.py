"""How fast PGD runs, alone and beside the same attack in PyTorch.

    python benchmarks/attack_steps.py                                    # WRN-28-10, PGD-10, float32 and bfloat16
    python benchmarks/attack_steps.py --model=resnet18 --batch=128 --against=torch,channels_last,compile
    python benchmarks/attack_steps.py --local                            # tiny, under two minutes on two cores

One compiled program holds all steps of the attack and returns the last iterate. Where PyTorch is installed, and has the
device that JAX uses, the same attack runs in the same process, in turns with ours: the same network with the same
weights, images, start, radius, step size and steps. `--against` selects: torch (eager), channels_last (eager, NHWC in
memory), compile (torch.compile), compile_channels_last. One judge, our network in float32, says how strong all results
are: mean cross-entropy at the radius, robust accuracy there and at the smaller radius that breaks about half of the
images. A row whose attack is not as strong as ours is marked so, and the command then ends with status 1.

It prints a table: images/s, attack steps/s (images x gradient evaluations / s), median and quartiles of the seconds of
one attack, seconds to compile (of torch.compile: its first call), GFLOP as the compiler counts them, the cost in
forward passes, the floor (2 passes a step at the device's measured matrix rate), the share of that rate, and the memory
the compiler plans; then the ratios of speed, ours over PyTorch's, paired by turn; device, versions, commit and load.
The same is written as JSON lines, one a row; `benchmarks/measure.py` says how each number is made. On a CPU that was
busy at the start no ratio is printed: the raw seconds are in the file.

The network is freshly initialised with the batch statistics of its images, and labels are its own predictions.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# JAX would take three quarters of a GPU's memory at its start, and PyTorch is to live beside it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# OMP_WAIT_POLICY stays as it is. PASSIVE was seen to make PyTorch three times slower on idle cores, and ACTIVE to leave
# its threads spinning through our turns; the default spins for a moment and then sleeps.
# Seconds of compilation are measured, and programs of earlier runs lie on the disk.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import measure, options, tables
from jrobust import units
from jrobust.attacks import cross_entropy, linf, pgd
from jrobust.errors import InputError, unknown
from jrobust.models.classifier import Classifier
from jrobust.training import cost

AGAINST = ("torch", "channels_last", "compile", "compile_channels_last")
STEP_SHARE = 1 / 4  # of eps, as 2/255 at 8/255
# How far the strength of two attacks of the same kind may lie apart: mean cross-entropy relative, accuracy absolute.
# Sign steps amplify rounding, so iterates are not compared: coordinates with gradients near zero part in float32.
LOSS_TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}
ACCURACY_TOLERANCE = {"float32": 0.02, "bfloat16": 0.05}  # or one image, where that is more


class Case(NamedTuple):
    """What is attacked: a network with its variables, and images; arrays lie on the device."""

    classifier: Classifier
    params: Any
    batch_stats: Any
    images: jax.Array
    labels: jax.Array
    noise: jax.Array  # in [-1, 1]; the attack starts at clip(images + eps noise)

    def start(self, eps: float) -> jax.Array:
        """Return where the attack starts."""
        return jnp.clip(self.images + eps * self.noise, 0, 1)


class Contender(NamedTuple):
    """One implementation of the attack of a case."""

    at: Callable[[float], Callable[[], Any]]  # radius -> attack without arguments, which are on the device already
    images: Callable[[Any], np.ndarray]  # result -> float32[B, H, W, C] on the host
    fields: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the rows."""
    parser = options.parser(__doc__ or "")
    parser.add_argument("--steps", type=int, default=10, help="gradient evaluations of the attack")
    parser.add_argument("--eps", default="8/255", help="radius of the Linf ball")
    parser.add_argument("--against", default="torch,channels_last,compile", help=", ".join(AGAINST) + ", or nothing")
    chosen = options.resolve(parser.parse_args(arguments), local_model="wrn-10-1")
    variants = tuple(filter(None, chosen.against.split(",")))
    for variant in variants:
        if variant not in AGAINST:
            raise unknown("--against", variant, AGAINST)
    console = tables.console()
    if variants and (obstacle := _obstacle(chosen.model)):
        console.print(f"no comparison with PyTorch: {obstacle}", soft_wrap=True, highlight=False)
        variants = ()
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
    case = make_case(chosen.model, dtype, chosen.batch)
    console.print(f"{chosen.model} in {dtype}: compiling", highlight=False)
    contenders = {"jrobust": ours(case, steps)} | {name: theirs(case, name, dtype, steps, eps) for name in variants}
    product, product_flops = cost.matrix_product(dtype)
    console.print(f"{chosen.model} in {dtype}: measuring {', '.join(contenders)}", highlight=False)
    programs = {"matrix product": product} | {name: c.at(eps) for name, c in contenders.items()}
    timings = measure.in_turns(programs, chosen.repeats)
    matrix_rate = product_flops / min(timings["matrix product"].seconds)
    forward = cost.flops(
        lambda p, s, x: case.classifier.apply(p, s, x).logits, case.params, case.batch_stats, case.images
    )
    half = half_broken(case, contenders["jrobust"], eps)
    strengths = {name: strength(case, contender, eps, half) for name, contender in contenders.items()}
    rows = []
    for name, contender in contenders.items():
        row = {"name": name, "program": f"pgd-{steps}", "model": chosen.model, "dtype": dtype}
        row |= {"batch": chosen.batch, "steps": steps, "eps": chosen.eps, "half_broken_eps": half}
        row |= timings[name].row() | {"flops": contenders["jrobust"].fields["flops"]} | contender.fields
        row |= measure.rates(row, matrix_rate=matrix_rate, forward_flops=forward, counted=2.0 * steps)
        row |= strengths[name]
        if name != "jrobust":
            row["speed_of_jrobust_over_this"] = measure.ratio(timings[name], timings["jrobust"])
            row["best_over_best"] = min(timings[name].seconds) / min(timings["jrobust"].seconds)
            row["same_strength"] = same_strength(strengths["jrobust"], strengths[name], dtype, chosen.batch)
        rows.append(row | measure.machine())
    return rows


def make_case(model: str, dtype: str, batch: int) -> Case:
    """Return a network and random images that it has seen; the labels are its own predictions."""
    classifier = options.classifier(model, dtype)
    init_key, image_key, noise_key = jax.random.split(jax.random.key(0), 3)
    images = jax.random.uniform(image_key, (batch, *classifier.input_shape))
    params, initial = classifier.init(init_key)
    moved = jax.jit(lambda x: classifier.apply(params, initial, x, train=True).batch_stats)(images)
    # One pass moves the running statistics a tenth of the way; this goes all the way, as a trained network's have.
    batch_stats = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, moved, initial)
    labels = jnp.argmax(_judge(classifier)(params, batch_stats, images), axis=-1)
    noise = jax.random.uniform(noise_key, images.shape, minval=-1, maxval=1)
    return Case(classifier, params, batch_stats, images, labels, noise)


def ours(case: Case, num_steps: int) -> Contender:
    """Return this library's attack, compiled."""

    def attack(params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array, start: jax.Array, eps: jax.Array):
        def objective(x: jax.Array) -> jax.Array:
            return cross_entropy(case.classifier.apply(params, batch_stats, x).logits, labels)

        return pgd(
            objective, images, threat=linf(eps), step_size=STEP_SHARE * eps, num_steps=num_steps, start=start
        ).adv_images

    def arguments(eps: float) -> tuple:
        return *case[1:5], case.start(eps), jnp.float32(eps)

    compiled, seconds = measure.compile_ahead(jax.jit(attack), *arguments(0.0))
    fields = measure.program_fields(compiled, seconds, attack, *arguments(0.0))
    return Contender(lambda eps: functools.partial(compiled, *arguments(eps)), np.asarray, fields)


def theirs(case: Case, variant: str, dtype: str, num_steps: int, eps: float) -> Contender:
    """Return PyTorch's attack; the first call, in which torch.compile works, has been made."""
    import torch

    from benchmarks import torch_attack

    where = torch_attack.device(jax.default_backend())
    model = torch_attack.port(case.classifier, *jax.device_get((case.params, case.batch_stats)))
    assert where and model
    attack = torch_attack.Attack(model, variant, where=where, bfloat16=dtype == "bfloat16", num_steps=num_steps)

    def at(radius: float) -> Callable[[], torch.Tensor]:
        arrays = (np.asarray(array) for array in (case.images, case.labels, case.start(radius)))
        return attack.program(*arrays, eps=radius, step_size=STEP_SHARE * radius)

    begin = time.perf_counter()
    at(eps)()
    fields = {
        "compile_seconds": time.perf_counter() - begin if variant.startswith("compile") else None,
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "peak_bytes": torch.cuda.max_memory_allocated() if where == "cuda" else None,
    }
    return Contender(at, torch_attack.to_images, fields)


def judge(case: Case, contender: Contender, eps: float) -> tuple[float, float, float]:
    """Return mean cross-entropy, accuracy and largest distance of a result, by our network in float32."""
    adv_images = jnp.asarray(contender.images(contender.at(eps)()))
    logits = _judge(case.classifier)(case.params, case.batch_stats, adv_images)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == case.labels)
    distance = jnp.max(jnp.abs(adv_images - case.images))
    return float(jnp.mean(cross_entropy(logits, case.labels))), float(accuracy), float(distance)


def half_broken(case: Case, contender: Contender, eps: float) -> float:
    """Return the radius eps / 2^k, k < 8, at which the accuracy is nearest to a half."""
    return min((eps / 2**k for k in range(8)), key=lambda radius: abs(judge(case, contender, radius)[1] - 0.5))


def strength(case: Case, contender: Contender, eps: float, half: float) -> dict[str, float]:
    """Return what the judge says at both radii."""
    loss, accuracy, distance = judge(case, contender, eps)
    return {
        "result_cross_entropy": loss,
        "result_robust_accuracy": accuracy,
        "result_distance": distance,
        "robust_accuracy_at_half_broken_eps": judge(case, contender, half)[1],
    }


def same_strength(one: dict[str, float], other: dict[str, float], dtype: str, batch: int) -> bool:
    """Return whether two results are equally strong within the tolerances of the type."""
    apart = {name: abs(one[name] - other[name]) for name in one}
    accuracy = max(ACCURACY_TOLERANCE[dtype], 1 / batch) + 1e-6
    return (
        apart["result_cross_entropy"] <= LOSS_TOLERANCE[dtype] * abs(one["result_cross_entropy"])
        and apart["result_robust_accuracy"] <= accuracy
        and apart["robust_accuracy_at_half_broken_eps"] <= accuracy
        and apart["result_distance"] < 1e-5
    )


@functools.lru_cache
def _judge(classifier: Classifier) -> Callable[[Any, Any, jax.Array], jax.Array]:
    exact = Classifier(
        classifier.module.clone(dtype=jnp.float32),
        classifier.mean,
        classifier.std,
        classifier.num_classes,
        classifier.input_shape,
    )
    return jax.jit(lambda params, batch_stats, images: exact.apply(params, batch_stats, images).logits)


def _obstacle(model: str) -> str | None:
    """Return what stands against a comparison, in one line, or None."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; `pip install 'jrobust[parity]'` installs it; the rows of jrobust follow"
    from benchmarks import torch_attack

    if torch_attack.device(jax.default_backend()) is None:
        return f"this torch cannot use the {jax.default_backend()} that JAX uses; install its build for that device"
    classifier = options.classifier(model, "float32")
    params, batch_stats = jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(classifier.init, jax.random.key(0))
    )
    if torch_attack.port(classifier, params, batch_stats) is None:
        return f"{model} is not written in benchmarks/torch_attack.py; take a wide ResNet or resnet18"
    return None


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
