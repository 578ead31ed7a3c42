import functools
import io
import json
import os
import signal
import warnings

import jax
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.training import checkpoint, loop, parallel
from jrobust.training.logging import read
from jrobust.training.progress import Progress
from tests.training import toy

QUIET = {"progress": functools.partial(Progress, stream=io.StringIO())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    stream = io.StringIO()
    summary = toy.train(workdir, toy.config(), progress=functools.partial(Progress, stream=stream))
    return workdir, summary, stream.getvalue()


def test_what_a_run_leaves_behind(whole):
    workdir, summary, shown = whole
    assert summary.step == summary.total_steps == 12 and summary.signal is None and summary.resumed_from == 0
    assert summary.parameters == 3 * 3 * 3 * 4 + 4 + 4 + 4 * 3
    assert checkpoint.saved_steps(workdir)[-2:] == [9, 12]
    records = read(workdir / "metrics.jsonl")
    # 4 steps an epoch: records at 5, 10 and the end, accuracy at 4, 8 and 12.
    assert [record["step"] for record in records] == [4, 5, 8, 10, 12, 12]
    assert [record["epoch"] for record in records if "loss" in record] == [1.25, 2.5, 3.0]
    assert [record["learning_rate"] for record in records if "loss" in record] == [0.1, 0.01, 0.01]
    assert records[-1] == {"step": 12, "epoch": 3.0} | summary.metrics
    assert set(records[1]) == {
        *("step", "epoch", "learning_rate", "loss", "accuracy", "gradient_norm", "parameter_norm", "update_norm")
    }
    times = read(workdir / "throughput.jsonl")
    assert "compile_seconds" in times[0] and times[-1]["seconds_left"] == 0 and times[-1]["images_per_second"] > 0
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(toy.config().to_dict()))
    assert json.loads((workdir / "environment.json").read_text())["seed"] == 3
    assert "step 10/12: loss" in shown and "test accuracy" in shown


def test_the_model_learns(tmp_path):
    settings = toy.config(steps=80)
    settings.optimizer.drop_epochs, settings.optimizer.drop_factors = (), ()
    assert toy.train(tmp_path, settings, **QUIET).metrics[checkpoint.BEST[0]] > 0.8


def test_the_same_seed_is_the_same_run_and_another_is_not(whole, tmp_path):
    again = toy.train(tmp_path / "again", toy.config(), **QUIET)
    assert toy.same(again.train_state, whole[1].train_state)
    other = toy.config()
    other.seed = 4
    assert not toy.same(toy.train(tmp_path / "other", other, **QUIET).train_state.params, whole[1].train_state.params)


class Interrupting(toy.ToyBatches):
    """Sends this process a signal as a batch is asked for."""

    def __init__(self, at, number=signal.SIGTERM):
        super().__init__(toy.data(), 16, 3)
        self.at, self.number = at, number

    def __next__(self):
        if self.position == self.at:
            os.kill(os.getpid(), self.number)
        return super().__next__()


@pytest.mark.parametrize("at", [1, 5, 6, 10])
def test_a_signal_saves_and_the_rest_is_the_same_run(whole, tmp_path, at):
    stopped = toy.train(tmp_path, toy.config(), batches=Interrupting(at), **QUIET)
    assert stopped.signal == signal.SIGTERM and stopped.step == at + 1
    assert checkpoint.saved_steps(tmp_path)[-1] == at + 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = toy.train(tmp_path, toy.config(), **QUIET)
    assert resumed.resumed_from == at + 1 and resumed.signal is None
    assert toy.same(resumed.train_state, whole[1].train_state)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert json.loads((tmp_path / "environment.json").read_text())["resumed"][0]["step"] == at + 1


def test_control_c_is_a_signal_too(tmp_path):
    stopped = toy.train(tmp_path, toy.config(), batches=Interrupting(2, signal.SIGINT), **QUIET)
    assert stopped.signal == signal.SIGINT and checkpoint.saved_steps(tmp_path) == [3]


def test_a_finished_run_is_left_as_it_is(whole):
    workdir, summary, _ = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    again = toy.train(workdir, toy.config(), **QUIET)
    assert again.step == again.resumed_from == 12 and again.metrics == summary.metrics
    assert toy.same(again.train_state, summary.train_state)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_run_can_be_made_longer_but_not_shorter(tmp_path):
    toy.train(tmp_path, toy.config(steps=4), **QUIET)
    assert toy.train(tmp_path, toy.config(steps=8), **QUIET).resumed_from == 4
    with pytest.raises(InputError, match="is at step 8 and the config asks for 6"):
        toy.train(tmp_path, toy.config(steps=6), **QUIET)
    other = toy.config(steps=8)
    other.optimizer.learning_rate = 0.2
    with pytest.raises(InputError, match=r"optimizer.learning_rate is 0.1 there and 0.2 here"):
        toy.train(tmp_path, other, **QUIET)


@pytest.mark.parametrize("first", parallel.MODES)
def test_modes_and_devices_may_change_on_the_way(whole, tmp_path, first):
    second = {"jit": "pmap", "pmap": "jit"}[first]
    toy.train(tmp_path, toy.config(steps=6, parallelism=first), mesh=parallel.make_mesh(4), **QUIET)
    summary = toy.train(tmp_path, toy.config(parallelism=second), mesh=parallel.make_mesh(2), **QUIET)
    assert summary.resumed_from == 6 and summary.step == 12
    for left, right in zip(
        jax.tree.leaves(summary.train_state.params), jax.tree.leaves(whole[1].train_state.params), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=0, atol=2e-5)


def test_divergence_stops_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"loss is nan at step 8, in the window of steps 7 to 9.*checkpoint is step 6"):
        toy.train(tmp_path, toy.config(), method=toy.ToyMethod(blow_up_at=7), **QUIET)
    assert checkpoint.saved_steps(tmp_path)[-1] == 6
    variables, _ = checkpoint.restore_variables(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables.params))


def test_damage_costs_only_the_steps_since_the_checkpoint_before(whole, tmp_path):
    toy.train(tmp_path, toy.config(steps=9), **QUIET)
    (tmp_path / "checkpoints" / "9" / "_CHECKPOINT_METADATA").write_text("{")
    with pytest.warns(UserWarning, match="resuming from the checkpoint before it"):
        resumed = toy.train(tmp_path, toy.config(), **QUIET)
    assert resumed.resumed_from == 6
    assert toy.same(resumed.train_state, whole[1].train_state)


def test_a_config_that_is_no_good_leaves_the_folder_free(tmp_path):
    wrong = toy.config()
    wrong.optimizer.drop_factors = ()
    with pytest.raises(InputError, match="drop_epochs has 1 entries"):
        toy.train(tmp_path, wrong, **QUIET)
    with pytest.raises(InputError, match="log_every_steps is -1"):
        toy.train(tmp_path, toy.config(log_every_steps=-1), **QUIET)
    toy.train(tmp_path, toy.config(steps=1), **QUIET)


def test_a_batch_that_does_not_divide(tmp_path):
    with pytest.raises(InputError, match="a batch of 12 does not divide by 8 devices"):
        toy.train(tmp_path, toy.config(batch_size=12), mesh=parallel.make_mesh(8), **QUIET)
    assert not list(tmp_path.iterdir())


def test_first_variables_may_come_from_elsewhere(tmp_path):
    given = []

    def initialize(key, batch):
        given.append(toy.ToyMethod().init(jax.random.key(99), batch))
        return given[0]

    settings = toy.config(steps=1)
    settings.optimizer.learning_rate = 0.0
    summary = toy.train(tmp_path, settings, initialize=initialize, **QUIET)
    assert toy.same(summary.train_state.params, given[0].params)
    toy.train(tmp_path, settings, initialize=None, **QUIET)


def test_no_evaluation(tmp_path):
    settings = toy.config(steps=4)
    summary = loop.train(
        toy.ToyMethod(),
        settings,
        tmp_path,
        batches=toy.ToyBatches(toy.data(), 16),
        prepare=toy.prepare,
        mesh=parallel.make_mesh(1),
        **QUIET,
    )
    assert summary.metrics == {}


def test_no_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy.train(tmp_path, toy.config(steps=4), **QUIET)
        toy.train(tmp_path, toy.config(steps=5), **QUIET)
