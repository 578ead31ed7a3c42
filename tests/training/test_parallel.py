import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.errors import InputError
from jrobust.training import parallel
from jrobust.training import state as train_states
from jrobust.training.program import step_over
from tests.training import toy

STEPS = 4


class Unsynchronised(toy.ToyMethod):
    def with_axis(self, axis_name):
        return self


def run(mode, devices, *, make=toy.ToyMethod, dtype=jnp.float64, start=None, steps=STEPS, compiled=False, position=0):
    """Take some steps; return the state, the last metrics and how often the step was traced."""
    traces = []
    mesh = parallel.make_mesh(devices)
    method = make(dtype=dtype)
    tx = optax.sgd(0.1, momentum=0.9)
    pure = step_over(mesh, mode, method, tx, toy.prepare)

    def counted(*arguments):
        traces.append(1)
        return pure(*arguments)

    step = parallel.parallelize(counted, mesh, mode)
    arrays = toy.data()
    batches = toy.ToyBatches(arrays, 16)
    batches.position = position
    if start is None:
        variables = method.init(jax.random.key(1), {"image": jnp.zeros((1, 6, 6, 3))})
        start = train_states.create(variables, tx)
    state, resident, key = (step.replicate(tree) for tree in (start, arrays, jax.random.key(2)))
    placed = [step.shard(next(batches)) for _ in range(steps)]
    call = step.compile(state, placed[0], resident, key) if compiled else step
    with jax.transfer_guard("disallow"):
        for batch in placed:
            before = state
            state, metrics = call(state, batch, resident, key)
    return state, metrics, len(traces), before


def distance(left, right):
    def one(a, b):
        return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))))

    return max(one(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.fixture(scope="module")
def single():
    with jax.enable_x64(True):
        state, metrics, _, _ = run("jit", 1)
        return jax.device_get((state.params, state.state["var"], metrics))


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_mode_and_mesh_equals_one_device(mode, devices, single):
    with jax.enable_x64(True):
        state, metrics, traces, before = run(mode, devices)
        assert state.params["head"]["kernel"].dtype == jnp.float64
        params, var, single_metrics = single
        assert distance(params, state.params) < 1e-12
        assert distance(var, state.state["var"]) < 1e-12
        assert distance(single_metrics, metrics) < 1e-6
    assert traces == 1
    assert int(state.step) == STEPS and int(state.state["seen"]) == STEPS
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    layout = parallel.parallelize(lambda *arguments: arguments, parallel.make_mesh(devices)).replicated
    assert all(leaf.sharding.is_equivalent_to(layout, leaf.ndim) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("mode", parallel.MODES)
def test_batch_norm_that_is_not_synchronised_is_another_model(mode, single):
    with jax.enable_x64(True):
        state, *_ = run(mode, 8, make=Unsynchronised)
        assert distance(single[0], state.params) > 1e-4


@pytest.mark.parametrize("first", parallel.MODES)
def test_states_pass_between_the_modes(first, single):
    second = {"jit": "pmap", "pmap": "jit"}[first]
    with jax.enable_x64(True):
        half, *_ = run(first, 4, steps=2)

        state, _, traces, _ = run(second, 4, steps=2, start=half, position=2)
        assert distance(single[0], state.params) < 1e-12
    assert traces == 1


@pytest.mark.parametrize("mode", parallel.MODES)
def test_compiling_ahead_traces_once(mode):
    state, _, traces, before = run(mode, 2, dtype=jnp.float32, compiled=True)
    assert traces == 1
    assert int(state.step) == STEPS
    assert before.params["head"]["kernel"].is_deleted()


@pytest.mark.parametrize("mode", parallel.MODES)
def test_indivisible_batch(mode):
    step = parallel.parallelize(lambda *arguments: arguments, parallel.make_mesh(8), mode)
    with pytest.raises(
        InputError, match=r"a batch of 20 does not divide by 8 devices: set train.batch_size to 16 or 24"
    ):
        step.shard({"index": np.arange(20)})


@pytest.mark.parametrize("count", [0, -1, 3, 5, 8])
def test_microbatches_that_do_not_divide_a_device_s_images(count):
    mesh = parallel.make_mesh(4)
    message = f"the 4 images of a batch on each device do not split into {count} equal parts: .* to one of 1, 2, 4$"
    with pytest.raises(InputError, match=message):
        parallel.check_divisible(16, mesh, count)
    for allowed in (1, 2, 4):
        parallel.check_divisible(16, mesh, allowed)


def test_bad_names():
    with pytest.raises(InputError, match=r"did you mean 'pmap'"):
        parallel.axis_name("pmpa", parallel.make_mesh(2))
    with pytest.raises(InputError, match=r"this machine has 8"):
        parallel.make_mesh(9)
