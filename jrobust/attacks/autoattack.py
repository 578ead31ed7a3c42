"""AutoAttack (Croce and Hein 2020): the field's standard judge, as a compiled run that can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jrobust.attacks import model_checks
from jrobust.attacks.autoattack_input import Input, checked
from jrobust.attacks.autoattack_run import AutoAttackResult, Progress, Run
from jrobust.attacks.autoattack_state import State
from jrobust.attacks.ledger import Plan
from jrobust.attacks.threat import Threat
from jrobust.attacks.versions import Budget, parts
from jrobust.errors import InputError


def autoattack(
    logits_fn: Callable[..., jax.Array],
    images: Any,
    labels: Any,
    key: jax.Array,
    threat: Threat,
    version: str = "standard",
    *,
    variables: Any = None,
    index: Any = None,
    budget: Budget | None = None,
    batch_size: int = 256,
    compact: bool = True,
    segment: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    allow_random: bool = False,
    state: State | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> AutoAttackResult:
    """Attack images with a sequence of attacks, each one those that stand after the ones before.

    The versions are in `jrobust.attacks.versions.parts`. A function of the host, not to be traced: it steps compiled
    programs and drops broken images between the steps. Each of the programs is compiled once for a batch size, and not
    again for other images, weights or radii. An image's outcome depends on the image, its label, its number and the key
    only: not on the batch size, on its neighbours, on `compact`, on the number of devices or on interruptions, as far
    as the classifier answers the same in each of these cases.

    Args:
      logits_fn: any JAX function: images float[B, H, W, C] in [0, 1] -> logits float[B, K], for any B; normalisation is
        inside it. With `variables` it is called as `logits_fn(variables, images)`. In version "rand" typed keys [B] are
        a last argument. Hashable.
      images: float[N, H, W, C] in [0, 1].
      labels: int[N].
      key: a typed PRNG key.
      threat: `linf(eps)` or `l2(eps)`.
      version: "standard", "plus", "rand" or "few".
      variables: a pytree of arrays. Weights that `logits_fn` captures instead are constants of every program.
      index: int[N], the images' numbers in the data set, for their keys; 0 .. N-1 by default.
      budget: shorter attacks, for trials; the result is then not AutoAttack.
      batch_size: rows at a time.
      compact: False runs all rows in fixed batches to the end, for comparisons of speed.
      segment: iterations between two looks at the outcomes. By default 10 (of Square 50), and on CPU 1 for attacks with
        gradients, as those of convolutions are slow inside a loop there.
      mesh: devices to spread batches over; `batch_size` is rounded up to a multiple of their number.
      allow_random: go on, with a flag, where the model answers differently twice.
      state: of an interrupted run with the same arguments; it is continued in place.
      progress: called after every segment; may raise to stop.

    Raises:
      InputError: images outside [0, 1], not finite or none; labels that are no classes; an unknown version; a function
        that gives no logits; a traced argument; a model that answers differently twice (but in "rand").
      StateError: an InputError; the state is of another run.
    """
    budget = budget or Budget()
    data = checked(logits_fn, variables, images, labels, key, index, threat, randomised=version == "rand")
    plan = _plan(data, batch_size, compact, mesh)
    if mesh is not None:
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        data = data._replace(variables=jax.device_put(data.variables, everywhere))
    sequence = parts(version, threat.norm, data.classes, budget)
    run = Run(data, threat, key, sequence, plan, segment, version == "rand", progress)
    checks, flags = run.check_answers(allow_random=allow_random)
    clean = run.look(data.images, data.labels, data.numbers)
    targets = max((part.variants for part in sequence if part.targeted), default=0)
    flags += model_checks.answer_flags(clean, targets=max(targets, 1))
    run.begin(clean, state)
    for number in range(max(run.state.part, 0), len(sequence)):
        run.attack(number)
    return run.result(checks, flags)


def _plan(data: Input, batch_size: int, compact: bool, mesh: jax.sharding.Mesh | None) -> Plan:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    devices = mesh.shape[mesh.axis_names[0]] if mesh is not None else 1
    return Plan(-(-batch_size // devices) * devices, compact=compact, mesh=mesh)
