"""One attack in several implementations, and the judge of how strong their results are: what `attack_steps` compares.

A contender is made by `ours` or `theirs` in the process in which it is to live (benchmarks/processes.py).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, options
from jrobust.attacks import cross_entropy, linf, pgd
from jrobust.models.classifier import Classifier
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.models.network import Network

EAGER = ("torch", "channels_last", "compile", "compile_channels_last")  # written in benchmarks/torch_attack.py
PEERS = ("torchattacks", "foolbox")
STEP_SHARE = 1 / 4  # of eps, as 2/255 at 8/255
# How far the strength of two attacks of the same kind may lie apart: mean cross-entropy relative, accuracy absolute.
# Sign steps amplify rounding, so iterates are not compared: coordinates with gradients near zero part in float32.
LOSS_TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}
ACCURACY_TOLERANCE = {"float32": 0.02, "bfloat16": 0.05}  # or one image, where that is more

Images = Callable[[float], np.ndarray]  # radius -> adversarial images float32[B, H, W, C]


class Case(NamedTuple):
    """What is attacked: a network with its variables, and images; arrays lie on the device."""

    model: str  # as `--model` names it
    dtype: str
    params: Any
    state: Any  # batch statistics, or texts
    images: jax.Array
    labels: jax.Array
    noise: jax.Array  # in [-1, 1]; the attack starts at clip(images + eps noise)

    @property
    def network(self) -> Network:
        """The network."""
        return options.network(self.model, self.dtype)

    def start(self, eps: float) -> jax.Array:
        """Return where the attack starts."""
        return jnp.clip(self.images + eps * self.noise, 0, 1)


class Contender(NamedTuple):
    """One implementation of the attack of a case."""

    at: Callable[[float], Callable[[], Any]]  # radius -> attack without arguments, which are on the device already
    to_images: Callable[[Any], np.ndarray]  # result -> float32[B, H, W, C] on the host
    fields: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """Return the fields of its row."""
        return self.fields

    def clock(self, eps: float) -> measure.Clock:
        """Attack once and return the seconds."""
        return measure.clock(self.at(eps))

    def images(self, eps: float) -> np.ndarray:
        """Attack once and return the result."""
        return self.to_images(self.at(eps)())


def make_case(model: str, dtype: str, batch: int) -> Case:
    """Return a network and random images that it has seen; the labels are its own predictions."""
    network = options.network(model, dtype)
    init_key, image_key, noise_key = jax.random.split(jax.random.key(0), 3)
    images = jax.random.uniform(image_key, (batch, *network.input_shape))
    params, state = network.init(init_key)
    if isinstance(network, Classifier):
        moved = jax.jit(lambda x: network.apply(params, state, x, train=True).batch_stats)(images)
        # One pass moves the running statistics a tenth of the way; this goes all the way, as a trained network's have.
        state = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, moved, state)
    labels = jnp.argmax(_judge(model)(params, state, images), axis=-1)
    noise = jax.random.uniform(noise_key, images.shape, minval=-1, maxval=1)
    return Case(model, dtype, params, state, images, labels, noise)


def ours(case: Case, num_steps: int) -> Contender:
    """Return this library's attack, compiled."""
    network = case.network

    def attack(params: Any, state: Any, images: jax.Array, labels: jax.Array, start: jax.Array, eps: jax.Array):
        def objective(x: jax.Array) -> jax.Array:
            return cross_entropy(network.apply(params, state, x).logits, labels)

        return pgd(
            objective, images, threat=linf(eps), step_size=STEP_SHARE * eps, num_steps=num_steps, start=start
        ).adv_images

    def arguments(eps: float) -> tuple:
        return case.params, case.state, case.images, case.labels, case.start(eps), jnp.float32(eps)

    compiled, seconds = measure.compile_ahead(jax.jit(attack), *arguments(0.0))
    fields = measure.program_fields(compiled, seconds, attack, *arguments(0.0))
    return Contender(lambda eps: functools.partial(compiled, *arguments(eps)), np.asarray, fields)


def theirs(case: Case, variant: str, num_steps: int, eps: float) -> Contender:
    """Return the attack of PyTorch or of a library on it; its first call, in which torch.compile works, is made."""
    import torch

    from benchmarks import torch_attack

    where = torch_attack.device(jax.default_backend())
    model = in_torch(case)
    assert where and model
    settings: dict[str, Any] = {"where": where, "bfloat16": case.dtype == "bfloat16", "num_steps": num_steps}
    if variant in PEERS:
        from benchmarks import torch_peers

        attack: torch_attack.Attack = torch_peers.ATTACKS[variant](model, variant, **settings)
    else:
        attack = torch_attack.Attack(model, variant, **settings)

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


def in_torch(case: Case) -> Any:
    """Return the network of a case in PyTorch, in inference mode; None if it is not written there."""
    from benchmarks import torch_attack, torch_clip

    network = case.network
    params, state = jax.device_get((case.params, case.state))
    if isinstance(network, ZeroShot):
        return torch_clip.port_zero_shot(network, params, state)
    assert isinstance(network, Classifier)
    return torch_attack.port(network, params, state)


def obstacle(model: str, variant: str) -> str | None:
    """Return what stands against a contender, in one line, or None."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; `pip install 'jrobust[parity]'` installs it"
    if variant in PEERS and importlib.util.find_spec(variant) is None:
        return f"{variant} is not installed; benchmarks/torch_peers.py says how"
    from benchmarks import torch_attack

    if torch_attack.device(jax.default_backend()) is None:
        return f"this torch cannot use the {jax.default_backend()} that JAX uses; install its build for that device"
    network = options.network(model, "float32")
    if isinstance(network, ZeroShot):
        written = network.clip.sizes.patch is not None
    else:
        assert isinstance(network, Classifier)
        written = torch_attack.is_written(network.module)
    if not written:
        return f"{model} is not written in PyTorch here; take a wide ResNet, resnet18 or a ViT"
    return None


def judge(case: Case, images: Images, eps: float) -> tuple[float, float, float]:
    """Return mean cross-entropy, accuracy and largest distance of a result, by our network in float32."""
    adv_images = jnp.asarray(images(eps))
    logits = _judge(case.model)(case.params, case.state, adv_images)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == case.labels)
    distance = jnp.max(jnp.abs(adv_images - case.images))
    return float(jnp.mean(cross_entropy(logits, case.labels))), float(accuracy), float(distance)


def half_broken(case: Case, images: Images, eps: float) -> float:
    """Return the radius eps / 2^k, k < 8, at which the accuracy is nearest to a half."""
    return min((eps / 2**k for k in range(8)), key=lambda radius: abs(judge(case, images, radius)[1] - 0.5))


def strength(case: Case, images: Images, eps: float, half: float) -> dict[str, float]:
    """Return what the judge says at both radii."""
    loss, accuracy, distance = judge(case, images, eps)
    return {
        "result_cross_entropy": loss,
        "result_robust_accuracy": accuracy,
        "result_distance": distance,
        "robust_accuracy_at_half_broken_eps": judge(case, images, half)[1],
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
def _judge(model: str) -> Callable[[Any, Any, jax.Array], jax.Array]:
    exact = options.network(model, "float32")
    return jax.jit(lambda params, state, images: exact.apply(params, state, images).logits)
