import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks import attack_steps, contenders, measure, options, tables
from jrobust.errors import InputError


def test_programs_run_in_turns_and_the_first_calls_are_not_timed():
    calls = []
    timings = measure.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abababab"
    assert [len(t.seconds) for t in timings.values()] == [3, 3]


def test_a_program_timed_elsewhere_keeps_its_seconds():
    assert measure.clock(lambda: measure.Clock(3.0, 5.0)) == (3.0, 5.0)
    here = measure.clock(lambda: sum(range(10)))
    assert 0 <= here.seconds < 1 and 0 <= here.cpu_seconds < 1


def test_ratio_is_paired_by_turn():
    slow, fast = measure.Timing((2.0, 40.0, 6.0), (0, 0, 0)), measure.Timing((1.0, 10.0, 2.0), (0, 0, 0))
    assert measure.ratio(slow, fast) == (2.5, 3.0, 3.5)  # of 2, 4, 3


def test_rates_by_hand():
    row = {"seconds_median": 2.0, "batch": 8, "steps": 10, "flops": 50.0}
    assert measure.rates(row, matrix_rate=100.0, forward_flops=2.0, counted=23.0) == {
        "images_per_second": 4.0,
        "attack_steps_per_second": 40.0,
        "forward_flops": 2.0,
        "passes": 25.0,
        "passes_counted": 23.0,
        "matrix_flops_per_second": 100.0,
        "floor_seconds": 0.46,
        "share": 0.25,
    }
    unknown = measure.rates(row | {"flops": None, "steps": 0}, matrix_rate=100.0, forward_flops=None, counted=3.0)
    assert [unknown[name] for name in ("attack_steps_per_second", "passes", "floor_seconds", "share")] == [None] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype=float16"], "did you mean 'bfloat16'"),
        (["--dtype="], "--dtype is empty"),
        (["--batch=-1"], "--batch=-1: expected a positive whole number"),
        (["--model=wrn-28"], "unknown --model 'wrn-28'"),
        (["--model=wrn-9-1"], "a wide ResNet has depth 6 n \\+ 4"),
        (["--against=pytorch"], "did you mean 'torch'"),
    ],
)
def test_bad_options(arguments, message, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=message):
        attack_steps.main([*arguments, "--local", *([] if "--against" in arguments[0] else ["--against="])])


def test_models_by_name():
    wide = options.classifier("wrn-16-4", "bfloat16", dropout=0.1).module
    assert (wide.depth, wide.width, wide.dropout, wide.dtype) == (16, 4, 0.1, jnp.bfloat16)
    assert options.classifier("resnet18", "float32").module.stem == "cifar"


def test_what_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None if name != "torch" else "here")
    assert "foolbox is not installed" in contenders.obstacle("wrn-10-1", "foolbox")
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    assert "torch is not installed" in contenders.obstacle("wrn-10-1", "torch")


def test_strength_that_differs_is_seen():
    one = {
        "result_cross_entropy": 2.0,
        "result_robust_accuracy": 0.1,
        "robust_accuracy_at_half_broken_eps": 0.5,
        "result_distance": 0.03,
    }
    assert contenders.same_strength(one, one, "float32", 100)
    for name, value in (
        ("result_cross_entropy", 1.9),
        ("result_robust_accuracy", 0.15),
        ("robust_accuracy_at_half_broken_eps", 0.45),
        ("result_distance", 0.02),
    ):
        assert not contenders.same_strength(one, one | {name: value}, "float32", 100)


@pytest.fixture
def cache_setting():
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_a_small_run_writes_what_it_prints(tmp_path, capsys, cache_setting):
    output = tmp_path / "deep" / "rows.json"
    arguments = ["--model=small_cnn", "--batch=2", "--steps=2", "--repeats=2", "--dtype=float32", "--against="]
    rows = attack_steps.main([*arguments, f"--output={output}"])
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(written) == len(rows) == 1
    row = written[0]
    assert row["passes"] == pytest.approx(4, rel=0.1)  # two forward passes and input gradients: no weight gradient
    assert row["images_per_second"] == pytest.approx(2 / row["seconds_median"])
    assert row["attack_steps_per_second"] == pytest.approx(4 / row["seconds_median"])
    assert row["result_distance"] == pytest.approx(8 / 255, abs=1e-6)
    assert row["commit"] is None or len(row["commit"]) >= 7
    assert {"date", "device", "versions", "load_before", "load_after", "compile_seconds"} <= set(row)
    printed = capsys.readouterr().out
    assert "jrobust" in printed and str(output) in printed and "GFLOP/s in float32" in printed


def test_the_table_says_when_the_cpu_was_busy(capsys):
    row = {"name": "pgd", "dtype": "float32", "model": "m", "batch": 1, "devices": 1, "device": "cpu", "cpu_cores": 2}
    row |= {
        "platform": "cpu",
        "versions": {},
        "commit": None,
        "date": "2026-01-31",
        "matrix_flops_per_second": 1e9,
        "load_after": 1.0,
    }
    for load, busy in ((5.0, True), (0.2, False), (None, False)):
        tables.report([row | {"load_before": load}], "title", Console(width=160))
        assert ("BUSY" in capsys.readouterr().out) == busy


def test_labels_are_the_networks_own_and_start_is_in_the_ball():
    case = contenders.make_case("small_cnn", "float32", 4)
    logits = case.network.apply(case.params, case.state, case.images).logits
    np.testing.assert_array_equal(jnp.argmax(logits, -1), case.labels)
    start = case.start(0.1)
    assert 0.09 < float(jnp.abs(start - case.images).max()) <= 0.1 + 1e-6
    assert float(start.min()) >= 0 and float(start.max()) <= 1
    train = case.network.apply(case.params, case.state, case.images, train=True)
    np.testing.assert_allclose(train.logits, logits, atol=1e-3)  # the statistics are those of these images
