"""Image for image the same verdict as APGD-CE in PyTorch, on a whole network in float32."""

import argparse
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import autoattack as benchmark
from jrobust.attacks import APGD, linf
from jrobust.attacks.iterative import Problem

torch = pytest.importorskip("torch")
BATCH = 125


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(classifier, attack, variables, problem):
    return attack.begin(lambda x: classifier.apply(*variables, x).logits, problem)


@functools.partial(jax.jit, static_argnums=(0, 1))
def advance(classifier, attack, variables, problem, carry, step):
    return attack.advance(lambda x: classifier.apply(*variables, x).logits, problem, carry, step)


def flags(case):
    """Robust under APGD-CE from the same starts, by this library and by PyTorch."""
    from benchmarks import torch_apgd, torch_attack

    model = torch_attack.port(case.classifier, *jax.device_get((case.params, case.batch_stats)))
    attack, variables = APGD("ce"), (case.params, case.batch_stats)
    ours, theirs = [], []
    with jax.default_matmul_precision("highest"):
        for i in range(0, len(case.labels), BATCH):
            images, labels, numbers = (a[i : i + BATCH] for a in (case.images, case.labels, case.numbers))
            problem = Problem.of(
                jnp.asarray(images), jnp.asarray(labels), linf(case.eps), jax.random.key(0), index=jnp.asarray(numbers)
            )
            carry = begin(case.classifier, attack, variables, problem)
            start = np.array(carry.x)
            for step in range(attack.num_steps):
                carry = advance(case.classifier, attack, variables, problem, carry, jnp.full(len(labels), step))
            x, x0 = (torch.tensor(np.array(a).transpose(0, 3, 1, 2)) for a in (images, start))
            y = torch.tensor(labels, dtype=torch.long)
            run = torch_apgd.attack_single_run(model, x, y, x0, norm="linf", eps=case.eps, loss="ce")
            with torch.no_grad():
                wrong = model(x).argmax(1) != y
            ours.append(~np.array(carry.success) & ~wrong.numpy())
            theirs.append(~(run.success | wrong).numpy())
    return np.concatenate(ours), np.concatenate(theirs)


def test_a_fresh_network_has_the_same_flags():
    chosen = argparse.Namespace(model="wrn-10-1", images=BATCH, eps="8/255")
    ours, theirs = flags(benchmark.fresh_case(chosen, "float32"))
    assert 0.1 < ours.mean() < 0.9, "the radius tells the images apart"
    assert (ours == theirs).mean() >= 0.99  # one image of 125


@pytest.mark.skipif("JROBUST_RUN" not in os.environ, reason="JROBUST_RUN names no trained run of launch/run.py")
def test_a_trained_network_has_the_same_flags():
    chosen = argparse.Namespace(run=os.environ["JROBUST_RUN"], data_dir=os.environ.get("JROBUST_DATA"))
    chosen.images, chosen.eps = 1000, "8/255"
    ours, theirs = flags(benchmark.trained_case(chosen, "float32"))
    print(f"robust: {ours.mean():.2%} here, {theirs.mean():.2%} in PyTorch; agreement {(ours == theirs).mean():.2%}")
    assert (ours == theirs).mean() >= 0.995
