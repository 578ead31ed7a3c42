import builtins
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.training import logging


def test_a_window_is_the_mean_of_its_steps():
    window = logging.Window()
    for step, loss in enumerate((1.0, 2.0, 6.0), start=1):
        window.add(step, {"loss": jnp.float32(loss), "accuracy": jnp.float32(0.1)})
    assert window.close() == {"accuracy": 0.1, "loss": 3.0}
    assert window.close() == {}


def test_a_window_that_goes_through_a_checkpoint_is_the_same():
    rng = np.random.default_rng(0)
    losses = rng.normal(size=9).astype(np.float32)
    whole, parts = logging.Window(), logging.Window()
    for step, loss in enumerate(losses, start=1):
        whole.add(step, {"loss": jnp.asarray(loss)})
        parts.add(step, {"loss": jnp.asarray(loss)})
        if step in (2, 5):
            parts = logging.Window(json.loads(json.dumps(parts.rows())))
    assert parts.close() == whole.close()


def test_divergence_names_the_step_and_the_window():
    window = logging.Window()
    for step in range(4, 8):
        window.add(step, {"loss": jnp.float32(np.nan if step >= 6 else 1), "gradient_norm": jnp.float32(1)})
    with pytest.raises(logging.DivergedError, match="loss is nan at step 6, in the window of steps 4 to 7"):
        window.close()


def test_a_methods_own_metric_may_be_nan(tmp_path):
    window = logging.Window()
    window.add(1, {"loss": jnp.float32(1), "cosine": jnp.float32(np.nan)})
    log = logging.RunLog(tmp_path)
    log.metrics(1, window.close())
    log.close()
    assert logging.read(tmp_path / "metrics.jsonl") == [{"step": 1, "cosine": None, "loss": 1.0}]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 123456.789, 0.0, -2.5e20])
def test_shortest_reads_back_as_the_same_float32(value):
    value = np.float32(value)
    assert np.float32(logging.shortest(value)) == value
    assert len(json.dumps(logging.shortest(value))) <= 15


def test_resuming_removes_what_is_done_again(tmp_path):
    log = logging.RunLog(tmp_path)
    for step in (5, 10, 10, 15):
        log.metrics(step, {"loss": 0.5})
    log.throughput(15, {"seconds": 1.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 20, "lo')  # killed in the middle of a line
    logging.RunLog(tmp_path, step=15).close()
    assert path.read_text() == whole
    logging.RunLog(tmp_path, step=10).close()
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:3])
    assert (tmp_path / "throughput.jsonl").read_text() == ""
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_that_needs_no_cut_is_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('# a note of the user\n{"step": 1}\n')
    before = path.stat().st_ino
    logging.truncate(path, 1)
    assert path.stat().st_ino == before


def test_tensorboard_has_the_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    log = logging.RunLog(tmp_path)
    log.metrics(3, {"loss": 0.5})
    log.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


def test_without_tensorboard_there_is_one_warning(tmp_path, monkeypatch):
    original = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "tensorboardX":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.warns(UserWarning, match="tensorboardX is not installed") as caught:
        log = logging.RunLog(tmp_path)
        log.metrics(1, {"loss": math.pi})
        log.close()
    assert len(caught) == 1
    assert len(logging.read(tmp_path / "metrics.jsonl")) == 1
