"""Each method's training step, on networks so small that it compiles in seconds."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from configs import art_cifar10, biasadv_cifar10c, clip_shapes, fsr_cifar10, masked_images_imagenet, pmg_aft_shapes
from jrobust import methods
from jrobust.data.pipeline import make_prepare
from jrobust.models import zoo
from jrobust.training import cost, parallel
from jrobust.training.program import assemble

B, N, CLASSES, SIDE = 8, 32, 4, 16
CNN = {"name": "small_cnn", "width": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}
SIZES = {"embed_dim": 24, "image_size": SIDE, "image_width": 64, "image_layers": 1, "patch": 4, "image_heads": 2}
TEXT = {"text_width": 32, "text_layers": 1, "text_heads": 2, "vocabulary": 23, "context": 7}
CLIP = {"name": "clip", "sizes": SIZES | TEXT, "mean": (0.5,) * 3, "std": (0.25,) * 3}
PROBE = CLIP | {"head": "linear"}


# Of each method: a config that trains it, and the network.
CASES = {
    "standard": (lambda: art_cifar10.get_config("variant=natural"), CNN),
    "adversarial": (lambda: art_cifar10.get_config("variant=pgd"), CNN),
    "trades": (lambda: fsr_cifar10.get_config("method=trades"), CNN),
    "mart": (lambda: fsr_cifar10.get_config("method=mart"), CNN),
    "adversarial, FSR": (
        lambda: fsr_cifar10.get_config("method=at,fsr"),
        CNN | {"fsr": {"positions": ("block3",), "hidden": 4}},
    ),
    "art": (lambda: art_cifar10.get_config("variant=art"), CNN),
    "erm, BiasAdv": (lambda: biasadv_cifar10c.get_config("method=erm,biasadv"), CNN),
    "identification": (lambda: changed(biasadv_cifar10c.get_config("method=jtt"), name="identification"), CNN),
    "jtt, BiasAdv": (lambda: biasadv_cifar10c.get_config("method=jtt,biasadv"), CNN),
    "lff": (lambda: biasadv_cifar10c.get_config("method=lff"), CNN),
    "lff, BiasAdv": (lambda: biasadv_cifar10c.get_config("method=lff,biasadv"), CNN),
    "pmg_aft": (lambda: pmg_aft_shapes.get_config("method=pmg_aft"), CLIP),
    "contrastive": (clip_shapes.get_config, CLIP),
    "linear_probe": (lambda: masked_images_imagenet.get_config("method=lp"), PROBE),
    "masked_images": (lambda: masked_images_imagenet.get_config("masking=object,refilling=single"), PROBE),
}
# Of an attack. Work that belongs outside of its loop shows where there are two; one compiles faster.
STEPS = {"adversarial": 2, "pmg_aft": 2}
SGD = dict.fromkeys(("weight_decay", "clip_norm"), 0.0) | dict.fromkeys(
    ("drop_epochs", "drop_factors", "fast_layers"), ()
)
SGD |= {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "fast_factor": 1.0}


def changed(config, **method):
    """Return a config with another method section."""
    with config.unlocked():
        config.method = method
    return config


class Step(NamedTuple):
    """A compiled step on one device, the arguments that lie there, and what it costs.

    `passes` are its FLOPs in forward passes of the deployed network on the batch.
    """

    compiled: jax.stages.Compiled
    arguments: tuple
    traces: int
    passes: float
    temporaries: int


@functools.cache
def compile_step(name):
    """Return the step of a case."""
    make, network = CASES[name]
    config = make().copy_and_resolve_references().unlock()
    section, steps = config.method.to_dict(), STEPS.get(name, 1)
    for part in (section, section.get("biasadv") or {}):
        part.update({key: value for key, value in (("num_steps", steps), ("groups", 1)) if key in part})
    config.optimizer = SGD
    classifier = zoo.build(network | {"dtype": "float32"}, num_classes=CLASSES, input_shape=(SIDE, SIDE, 3))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, TEXT["vocabulary"], (N, 2, TEXT["context"]), np.int32)
    texts = tuple(tuple(map(tuple, rows)) for rows in tokens[:CLASSES].tolist())
    method = methods.build(section, classifier, num_examples=N, class_tokens=texts)
    resident = {
        "image": rng.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, N, np.int32),
        "tokens": tokens,
    }
    batch = {"index": rng.permutation(N)[:B].astype(np.int32)}
    take, traces = make_prepare({}), []

    def prepare(*arguments):
        traces.append(1)
        return take(*arguments)

    mesh = parallel.make_mesh(1)
    program = assemble(method, config, batch, resident, prepare=prepare, mesh=mesh, steps_per_epoch=10, total_steps=100)
    traces.clear()
    lowered = program.parallel.step.lower(*program.arguments(batch, resident))  # on CPU its loops are unrolled
    compiled = lowered.compile()
    deployed = jax.eval_shape(lambda variables: method.deployed(variables), program.state.variables)
    forward = cost.flops(method.logits, deployed, program.example["image"])
    # Values do not matter, and `method.init` would be one more program to compile.
    state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), program.state)
    placed = program.parallel.replicate((state, resident, jax.random.key(1)))
    return Step(
        compiled,
        (placed[0], program.parallel.shard(batch), *placed[1:]),
        len(traces),
        lowered.cost_analysis()["flops"] / forward,
        cost.memory(compiled).temporaries,
    )
