import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jrobust.errors import InputError
from jrobust.training import collectives, layout, parallel
from jrobust.training import state as train_states
from jrobust.training.layout import state_layout
from jrobust.training.method import Replicated, Variables
from jrobust.training.program import step_over
from tests.training import toy
from tests.training.test_loop import QUIET

WIDTH = 128
DEVICES = 4


class Towers:
    """Two layers towards those of a frozen copy: matrices of 128 x 128, vectors, a number, and an odd matrix."""

    def init(self, key, batch):
        keys = jax.random.split(key, 3)
        params = {
            "first": jax.random.normal(keys[0], (WIDTH, WIDTH)) / 10,
            "second": jax.random.normal(keys[1], (WIDTH, WIDTH)) / 10,
            "odd": jax.random.normal(keys[2], (95, 97)),
            "bias": jnp.zeros(WIDTH),
            "scale": jnp.float32(1),
        }
        frozen = jax.tree.map(lambda leaf: leaf + 0.1, params)
        return Variables(params, {"tower": Replicated(frozen), "seen": jnp.int32(0), "key": jax.random.key(3)})

    def with_axis(self, axis_name):
        return self

    def forward(self, params, images):
        hidden = jax.nn.relu(images @ params["first"] + params["bias"])
        return hidden @ params["second"] * params["scale"] + params["odd"].mean()

    def loss(self, params, state, batch, key):
        images = batch["image"].reshape(len(batch["image"]), -1)[:, :WIDTH]
        images = jnp.pad(images, ((0, 0), (0, WIDTH - images.shape[1])))
        teacher = self.forward(state["tower"].value, images)
        loss = jnp.mean((self.forward(params, images) - teacher) ** 2)
        return loss, (state | {"seen": state["seen"] + 1}, {})

    def deployed(self, variables):
        return variables

    def logits(self, variables, images, *, beta=None):
        return images.reshape(len(images), -1) @ variables.params["first"][: math.prod(images.shape[1:]), :3]


TX = optax.adamw(1e-3)
ORDER = ("step", "params", "state", "opt_state")


def shapes():
    variables = jax.eval_shape(Towers().init, jax.random.key(0), {})
    return jax.eval_shape(lambda variables: train_states.create(variables, TX), variables)


def test_the_largest_axis_that_divides():
    mesh = parallel.make_mesh(DEVICES)
    rule = lambda *shape: layout._spec(shape, mesh)
    assert rule(64, 256) == PartitionSpec(None, "data") and rule(256, 64) == PartitionSpec("data")
    assert rule(128, 128) == PartitionSpec("data")  # the first of equals
    assert rule(257, 1024) == PartitionSpec(None, "data") and rule(1022, 64) == PartitionSpec(None, "data")
    assert rule(3, 3, 512, 64) == PartitionSpec(None, None, "data")
    assert rule(101, 103) == rule(8191) == rule(64, 64) == rule() == PartitionSpec()
    assert rule(8192) == PartitionSpec("data")


@pytest.mark.parametrize("word", layout.SHARDED)
def test_what_is_split(word):
    found = state_layout(shapes(), parallel.make_mesh(DEVICES), "jit", word)
    assert jax.tree.structure(found) == jax.tree.structure(shapes())
    split = {
        name for name in ORDER if any(leaf.spec != PartitionSpec() for leaf in jax.tree.leaves(getattr(found, name)))
    }
    assert split == {"none": set(), "optimizer": {"opt_state"}, "all": {"params", "state", "opt_state"}}[word]
    tower = found.state["tower"].value
    assert tower["odd"].spec == tower["bias"].spec == found.state["key"].spec == PartitionSpec()
    assert (tower["first"].spec == PartitionSpec("data")) == (word == "all")


def test_words():
    mesh = parallel.make_mesh(2)
    with pytest.raises(InputError, match=r"unknown train.shard_state 'optimiser'.*did you mean 'optimizer'"):
        state_layout(shapes(), mesh, "jit", "optimiser")
    with pytest.raises(InputError, match=r"train.shard_state=all splits .*: set train.parallelism=jit") as error:
        state_layout(shapes(), mesh, "pmap", "all")
    assert "\n" not in str(error.value)
    state_layout(shapes(), mesh, "pmap", "none")


def take(word, steps=3):
    """Return the state before the last step and after it, and the compiled step."""
    mesh, traces = parallel.make_mesh(DEVICES), []
    pure = step_over(mesh, "jit", Towers(), TX, toy.prepare, microbatches=2)

    def counted(*arguments):
        traces.append(1)
        return pure(*arguments)

    step = parallel.parallelize(counted, mesh, "jit", state_layout(shapes(), mesh, "jit", word))
    arrays = toy.data()
    batches = toy.ToyBatches(arrays, 16)
    state = jax.device_put(train_states.create(Towers().init(jax.random.key(1), {}), TX), step.layout)
    resident, key = step.replicate(arrays), step.replicate(jax.random.key(2))
    placed = [step.shard(next(batches)) for _ in range(steps)]
    program = step.compile(state, placed[0], resident, key)
    with jax.transfer_guard("disallow"):
        for batch in placed:
            before = state
            state, _ = program(state, batch, resident, key)
    assert len(traces) == 1
    return step, before, state, program


@pytest.fixture(scope="module")
def taken():
    return {word: take(word) for word in layout.SHARDED}


@pytest.mark.parametrize("word", ["optimizer", "all"])
def test_split_states_take_the_same_steps(taken, word):
    step, before, state, _ = taken[word]
    for a, b in zip(jax.tree.leaves(taken["none"][2]), jax.tree.leaves(state), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(step.layout), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    whole = step.gather(state)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole.variables))
    assert whole.opt_state is state.opt_state


def test_a_device_holds_its_part(taken):
    """Of matrices a quarter; the odd matrix, vectors and numbers are whole."""
    matrices, rest = 2 * WIDTH**2 * 4, (95 * 97 + WIDTH + 1) * 4
    of = {"none": (1, 1), "optimizer": (1, 1 / 4), "all": (1 / 4, 1 / 4)}
    for word, (variables, moments) in of.items():
        state = taken[word][2]
        held = lambda tree: sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree) if leaf.ndim or leaf.size == 1
        )
        assert held(state.params) == layout.bytes_on_each(state.params) == variables * matrices + rest
        assert held(state.state["tower"]) == variables * matrices + rest
        assert held(state.opt_state) == 2 * (moments * matrices + rest) + 4  # and Adam's counter
    whole, optimizer, everything = (taken[word][3].memory_analysis() for word in of)
    saved = 2 * matrices * 3 // 4
    assert whole.argument_size_in_bytes - optimizer.argument_size_in_bytes == saved
    assert whole.argument_size_in_bytes - everything.argument_size_in_bytes == 2 * saved
    assert optimizer.alias_size_in_bytes == pytest.approx(optimizer.argument_size_in_bytes, rel=0.2)


def test_examples_stay_where_they_are(taken):
    """Parameters come to the examples, and nothing is exchanged."""
    count = {"none": 0, "optimizer": 2, "all": 4}  # the two matrices; and those of the tower
    for word, (*_, program) in taken.items():
        found = collectives.of(program)
        assert found.pop("all-reduce").operations
        gathered = found.pop("all-gather", collectives.Traffic(0, 0))
        assert gathered == (count[word], count[word] * WIDTH**2 * 4) and not found


def test_a_run_goes_on_in_another_layout_and_on_other_devices(tmp_path):
    def train(folder, steps, word, devices):
        settings = toy.config(steps=steps, shard_state=word)
        settings.optimizer.learning_rate = 1e-3
        return toy.train(folder, settings, method=Towers(), mesh=parallel.make_mesh(devices), **QUIET)

    whole = train(tmp_path / "whole", 6, "none", 1)
    for steps, word, devices in ((2, "optimizer", 2), (4, "none", 1), (6, "all", 4)):
        summary = train(tmp_path / "split", steps, word, devices)
        assert summary.step == steps and summary.resumed_from == steps - 2
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(summary.train_state.variables))
    for a, b in zip(
        jax.tree.leaves(whole.train_state.params), jax.tree.leaves(summary.train_state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"set train\.parallelism=jit"):
        toy.train(tmp_path / "pmap", toy.config(shard_state="all", parallelism="pmap"), **QUIET)
