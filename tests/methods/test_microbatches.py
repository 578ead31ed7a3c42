"""Gradients of a batch in parts: the same steps for any number of them; where examples are coupled, one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust import loops
from jrobust.methods.lff import LfF
from jrobust.methods.masked_images import MaskedImages
from jrobust.methods.pmg_aft import PMGAFT
from jrobust.methods.standard import Standard
from jrobust.models import zoo
from jrobust.training import cost, parallel
from jrobust.training import state as train_states
from jrobust.training.program import step_over
from tests.methods import flat_clip, patched_clip
from tests.methods.networks import BatchNormed

B, KEY = 16, jax.random.key(1)
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
ATTACK = {"eps": 4 / 255, "step_size": 2 / 255, "num_steps": 1}
METHODS = {
    "standard": lambda k: Standard(patched_clip.model()),
    "pmg_aft": lambda k: PMGAFT(flat_clip.model(), **ATTACK, microbatches=k),
    "masked_images": lambda k: MaskedImages(patched_clip.model(), refilling="none"),
}


@pytest.fixture(autouse=True)
def x64(rolled_loops):
    with jax.enable_x64(True):
        yield


def steps(name, mode, devices, count):
    world = flat_clip if name == "pmg_aft" else patched_clip
    batches = [world.batch(B, seed) for seed in range(2)]
    (*_, state), metrics = flat_clip.train(METHODS[name](count), batches, optax.adamw(1e-2), mode, devices, count)
    return state, metrics


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_independent_examples_change_nothing(name):
    """Parameters, state, moments and metrics on four devices, with one image or two of each at a time; a loss that is a
    sum over the batch, an attack, and masks by relevance among them."""
    whole, expected = steps(name, "jit", 1, 1)
    for mode, count in (("jit", 4), ("pmap", 2)):
        state, metrics = steps(name, mode, 4, count)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        for one, other in zip(expected, metrics, strict=True):
            assert other == pytest.approx(one, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("jit", 4), ("pmap", 4)])
def test_lff_remembers_every_image_and_its_statistics_see_the_parts_in_turn(mode, devices):
    """Against the loss called by hand on every second image and then on the others."""
    rng = np.random.default_rng(0)
    method = by_hand = LfF(BatchNormed(), num_examples=B + 3)
    batch = {
        "image": rng.uniform(size=(B, *BatchNormed().input_shape)),
        "label": rng.integers(0, 3, B).astype(np.int32),
        "index": rng.permutation(B + 3)[:B].astype(np.int32),
    }
    tx = optax.sgd(0.1)
    params, state = start = by_hand.init(jax.random.key(0), {})
    slopes, key = [], jax.random.split(jax.random.fold_in(KEY, 0))[1]
    gradient = jax.jit(jax.grad(by_hand.loss, has_aux=True))
    for i in range(2):
        part = jax.tree.map(lambda rows, i=i: jnp.asarray(rows[i::2]), batch)
        slope, (state, _) = gradient(params, state, part, key)
        slopes.append(slope)
    expected = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, params, *slopes)

    mesh = parallel.make_mesh(devices)
    pure = step_over(mesh, mode, method, tx, lambda batch, resident, key: batch, microbatches=2)
    step = parallel.parallelize(pure, mesh, mode)
    placed, root = map(step.replicate, (train_states.create(start, tx), KEY))
    after, _ = step(placed, step.shard(batch), {}, root)
    for a, b in zip(jax.tree.leaves((expected, state)), jax.tree.leaves((after.params, after.state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    labels = after.state["losses"].value.label
    assert (np.flatnonzero(labels >= 0) == np.sort(batch["index"])).all()


@functools.cache
def small_vit(mode, devices, count):
    """A compiled step on a ViT with patches of 8."""
    sizes = {"embed_dim": 32, "image_size": 32, "image_width": 128, "image_layers": 1, "patch": 8, "image_heads": 2}
    sizes |= {"text_width": 48, "text_layers": 1, "vocabulary": 23, "context": 7, "text_heads": 2}
    section = {"name": "clip", "sizes": sizes, "head": "linear"}
    method, mesh = Standard(zoo.build(section, num_classes=4, input_shape=(32, 32, 3))), parallel.make_mesh(devices)
    tx = optax.adamw(1e-3)
    prepare = lambda batch, resident, key: batch | {"image": batch["image"] / 255}
    step = parallel.parallelize(step_over(mesh, mode, method, tx, prepare, microbatches=count), mesh, mode)
    start = jax.eval_shape(lambda key: train_states.create(method.init(key, {}), tx), KEY)
    rows = (512,) if mode == "jit" else (devices, 512 // devices)
    label = jax.ShapeDtypeStruct(rows, jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((*rows, 32, 32, 3), jnp.uint8), "label": label, "index": label}
    return step.compile(start, batch, {}, jax.eval_shape(lambda: KEY))


@pytest.mark.parametrize("rolled", [True, False])
def test_memory_is_that_of_a_part(rolled, monkeypatch):
    whole = cost.memory(small_vit("jit", 4, 1)).temporaries
    if not rolled:
        monkeypatch.setattr(loops, "unrolled", lambda unroll=None: True)
    compiled = small_vit("jit", 4, 4) if rolled else small_vit.__wrapped__("jit", 4, 4)
    assert cost.memory(compiled).temporaries < 0.5 * whole


@pytest.mark.parametrize("mode", parallel.MODES)
def test_nothing_but_sums_goes_between_devices(mode):
    """Once a step; and no example moves."""
    inside, found = "", set()
    for line in small_vit(mode, 4, 4).as_text().splitlines():
        if line.endswith("{") and " -> " in line:
            inside = "step" if line.startswith("ENTRY") else "part"
        found |= {(name, inside) for name in COLLECTIVES if f" {name}(" in line}
    assert found == {("all-reduce", "step")}
