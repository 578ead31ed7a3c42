import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.errors import InputError
from jrobust.training import checkpoint, parallel
from jrobust.training import state as train_states
from jrobust.training.method import Variables
from tests.training import toy

TX = optax.sgd(0.1, momentum=0.9)


def make_state(step=0, width=4, dtype=jnp.float32):
    variables = toy.ToyMethod(width=width, dtype=dtype).init(jax.random.key(step), {"image": jnp.zeros((1, 6, 6, 3))})
    state = train_states.create(variables, TX)
    return train_states.TrainState(jnp.int32(step), state.params, state.state, state.opt_state)


def abstract(state, devices=1):
    layout = parallel.parallelize(lambda *arguments: arguments, parallel.make_mesh(devices)).replicated
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), state)


def save(workdir, steps, scores=None, **options):
    saved = checkpoint.Checkpoints(workdir, **options)
    for step in steps:
        metrics = {checkpoint.BEST[0]: scores[step]} if scores and step in scores else None
        saved.save(make_state(step), {"position": step}, metrics, {"window": [[step, {"loss": 0.1}]]})
    saved.close()


def restore(workdir, state=None, devices=1):
    saved = checkpoint.Checkpoints(workdir)
    try:
        return saved.restore(abstract(state or make_state(), devices))
    finally:
        saved.close()


def array_file(folder, part="params"):
    """The file that holds the arrays of a part."""
    return max((folder / part).rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 16):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    save(tmp_path, [3], {3: 0.5})
    restored = restore(tmp_path)
    assert toy.same(restored.train_state, make_state(3))
    assert restored.train_state.state["key"].dtype == jax.random.key(0).dtype
    assert restored[1:] == ({"position": 3}, {checkpoint.BEST[0]: 0.5}, {"window": [[3, {"loss": 0.1}]]})


def test_nothing_saved_is_no_error(tmp_path):
    assert restore(tmp_path) is None
    assert checkpoint.saved_steps(tmp_path / "missing") == []


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path)
    state = make_state(1)
    expected = jax.device_get(state.params)
    saved.save(state, {})
    jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state.params), donate_argnums=0)(state)
    saved.close()
    assert toy.same(jax.device_get(restore(tmp_path).train_state.params), expected)


@pytest.mark.parametrize("devices", [2, 8])
def test_onto_another_number_of_devices(tmp_path, devices):
    save(tmp_path, [1])
    restored = restore(tmp_path, devices=devices).train_state
    assert toy.same(restored, make_state(1))
    assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(restored))
    fewer = checkpoint.Checkpoints(tmp_path)
    fewer.save(train_states.TrainState(jnp.int32(2), restored.params, restored.state, restored.opt_state), {})
    fewer.close()
    assert toy.same(restore(tmp_path, devices=1).train_state.params, make_state(1).params)


def test_newest_and_best_are_kept(tmp_path):
    save(tmp_path, range(1, 7), {1: 0.2, 2: 0.9, 3: 0.4, 5: 0.3}, keep_latest=2, keep_best=1)
    assert checkpoint.saved_steps(tmp_path) == [2, 5, 6]
    assert checkpoint.restore_variables(tmp_path, "best")[1] == 2
    assert checkpoint.restore_variables(tmp_path, "latest")[1] == 6
    assert checkpoint.restore_variables(tmp_path, 5)[1] == checkpoint.restore_variables(tmp_path, "5")[1] == 5
    save(tmp_path, [7, 8], {7: 0.8, 8: 0.1}, keep_latest=2, keep_best=1)  # the scores are remembered
    assert checkpoint.saved_steps(tmp_path) == [2, 7, 8]


def test_a_saved_step_is_not_written_again(tmp_path):
    save(tmp_path, [1])
    with pytest.raises(FileExistsError):
        save(tmp_path, [1])
    assert toy.same(restore(tmp_path).train_state, make_state(1))


def truncate_arrays(folder):
    path = array_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_record(folder):
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text()[:100])


def change_record(folder):
    path = folder / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    content["custom_metadata"]["pipeline"]["position"] = 1
    path.write_text(json.dumps(content))


DAMAGES = {
    "arrays cut": truncate_arrays,
    "bytes flipped": lambda folder: flip(array_file(folder)),
    "optimizer flipped": lambda folder: flip(array_file(folder, "opt_state")),
    "arrays gone": lambda folder: array_file(folder).unlink(),
    "part gone": lambda folder: shutil.rmtree(folder / "params"),
    "record cut": truncate_record,
    "record changed": change_record,
    "record gone": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    save(tmp_path, [1, 2])
    DAMAGES[damage](tmp_path / "checkpoints" / "2")
    left = sorted(path.name for path in (tmp_path / "checkpoints" / "2").rglob("*"))
    with pytest.warns(UserWarning, match=r"checkpoints/2 .*moved to .*checkpoints_damaged/2"):
        restored = restore(tmp_path)
    assert int(restored.train_state.step) == 1
    assert toy.same(restored.train_state, make_state(1))
    assert checkpoint.saved_steps(tmp_path) == [1]
    assert sorted(path.name for path in (tmp_path / "checkpoints_damaged" / "2").rglob("*")) == left  # nothing is lost
    save(tmp_path, [2])  # and the step can be done again
    assert int(restore(tmp_path).train_state.step) == 2


def test_when_all_are_damaged_nothing_is_touched(tmp_path):
    save(tmp_path, [1])
    flip(array_file(tmp_path / "checkpoints" / "1"))
    for read in (restore, checkpoint.restore_variables):
        with pytest.raises(InputError, match=r"no checkpoint in .* is whole: .*damaged"):
            read(tmp_path)
    assert checkpoint.saved_steps(tmp_path) == [1]


def test_a_save_that_was_cut_off_is_no_checkpoint(tmp_path):
    save(tmp_path, [1])
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    assert checkpoint.saved_steps(tmp_path) == [1]
    assert int(restore(tmp_path).train_state.step) == 1
    save(tmp_path, [2])
    assert checkpoint.saved_steps(tmp_path) == [1, 2]


def test_another_model_is_named_and_not_taken_for_damage(tmp_path):
    save(tmp_path, [1, 2])
    wide = (
        r"method: params/body/kernel is float32\[3,3,3,4\], expected float32\[3,3,3,5\]; .* and \d more; use the config"
    )
    with pytest.raises(InputError, match=wide):
        restore(tmp_path, make_state(width=5))
    state = make_state()
    narrow = train_states.TrainState(state.step, {"head": state.params["head"]}, state.state, state.opt_state)
    with pytest.raises(InputError, match=r"params/body/kernel float32\[3,3,3,4\] is in the checkpoint only"):
        restore(tmp_path, narrow)
    more = train_states.TrainState(state.step, state.params | {"new": jnp.ones(2)}, state.state, state.opt_state)
    with pytest.raises(InputError, match=r"params/new float32\[2\] is not in the checkpoint"):
        restore(tmp_path, more)
    assert checkpoint.saved_steps(tmp_path) == [1, 2]


def test_another_type_is_an_error_and_not_a_cast(tmp_path):
    save(tmp_path, [1])
    state = make_state()
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    wrong = train_states.TrainState(state.step, halves, state.state, state.opt_state)
    with pytest.raises(InputError, match=r"params/.* is float32\[.*\], expected bfloat16"):
        restore(tmp_path, wrong)


def test_variables_with_and_without_their_shapes(tmp_path):
    save(tmp_path, [4])
    shapes = jax.eval_shape(lambda: Variables(make_state().params, make_state().state))
    for given in (None, shapes):
        variables, step = checkpoint.restore_variables(tmp_path, abstract=given)
        assert step == 4
        assert toy.same(variables, make_state(4).variables)
        with jax.default_device(jax.devices()[1]):  # arrays can be used at once
            jnp.sum(variables.params["body"]["kernel"])
    wide = jax.eval_shape(lambda: make_state(width=5).variables)
    with pytest.raises(InputError, match=r"params/body/kernel is"):
        checkpoint.restore_variables(tmp_path, abstract=wide)


def test_reading_variables_changes_no_file(tmp_path):
    save(tmp_path, [1, 2], {1: 0.5, 2: 0.7})
    flip(array_file(tmp_path / "checkpoints" / "2"))
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(tmp_path).rglob("*")}
    for asked in ("latest", "best"):
        with pytest.warns(UserWarning, match=r"taking the checkpoint before it"):
            assert checkpoint.restore_variables(tmp_path, asked)[1] == 1
    with pytest.raises(InputError, match=r"damaged"):
        checkpoint.restore_variables(tmp_path, 2)
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(tmp_path).rglob("*")} == before


def test_asking_for_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint in"):
        checkpoint.restore_variables(tmp_path)
    save(tmp_path, [1])
    with pytest.raises(InputError, match=r"step 3 .*expected latest, best or one of 1"):
        checkpoint.restore_variables(tmp_path, 3)
    with pytest.raises(InputError, match=r"step newest"):
        checkpoint.restore_variables(tmp_path, "newest")
    with pytest.raises(InputError, match=r"ask for step=latest"):
        checkpoint.restore_variables(tmp_path, "best")


def test_a_method_without_state_and_with_small_types(tmp_path):
    params = {"a.b": [jnp.ones(2, jnp.bfloat16), jnp.float32(3.0)], "c": jnp.arange(3, dtype=jnp.int8)}
    state = train_states.create(Variables(params, {}), optax.identity())
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(state, {})
    saved.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert toy.same(restore(tmp_path, state).train_state, state)
        variables, _ = checkpoint.restore_variables(tmp_path, abstract=Variables(params, {}))
    assert toy.same(variables.params, params)
    assert np.asarray(variables.params["a.b"][0]).dtype == jnp.bfloat16


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"keep_latest"):
        checkpoint.Checkpoints(tmp_path, keep_latest=0)
