import json

import jax
import pytest

from benchmarks import measure, roofline, training
from jrobust import methods
from jrobust.errors import InputError
from jrobust.reporting import roofline as picture
from jrobust.training import cost


@pytest.fixture
def cache_setting():
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


# A tolerance is for batch norms, augmentation and optimizers, which weigh more in small networks.
@pytest.mark.parametrize(
    ("argument", "tolerance"),
    [
        ("configs/fsr_cifar10.py:method=trades", 0.01),
        ("configs/biasadv_cifar10c.py:method=lff,biasadv", 0.03),
        ("configs/art_cifar10.py:variant=art", 0.04),
    ],
)
def test_the_compiler_counts_what_is_counted_by_hand(argument, tolerance):
    config = roofline.read(argument, ("--config.model.width=2",) if "art" in argument else (), local=True)
    network, shape = roofline.network_of(config)
    found, arguments = training.assemble(config, methods.build(config.method, network, num_examples=9), 4, shape)
    work = cost.flops(found.step, *arguments) / training.forward_flops(network, 4)
    assert work == pytest.approx(roofline.step_passes(config, network), rel=tolerance)


@pytest.mark.parametrize("name", roofline.CALLS)
def test_attacks_and_attributions_by_hand(name):
    config = roofline.read(roofline.STEPS["natural"], ("--config.model.width=4",), local=True)
    network, _ = roofline.network_of(config)
    function, _, counted = roofline.CALLS[name](network, config.evaluation.attribution)
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *network.input_shape), "float32")
    work = cost.flops(function, params, state, images, jax.ShapeDtypeStruct((2,), "int32"))
    assert work / training.forward_flops(network, 2) == pytest.approx(counted, rel=0.05)


def test_a_config_runs_without_data(tmp_path, capsys, cache_setting):
    output = tmp_path / "rows.json"
    config = "--config=configs/art_digits.py:variant=natural"
    arguments = [config, "--config.model.width=4", "--local", "--batch=8", "--repeats=2", f"--output={output}"]
    rows = roofline.main(arguments)
    row = json.loads(output.read_text())
    assert row["name"] == "art_digits.py:variant=natural" and len(rows) == 1
    assert row["intensity"] == pytest.approx(row["flops"] / row["bytes"])
    by_work, by_bytes = row["flops"] / row["matrix_flops_per_second"], row["bytes"] / row["bytes_per_second"]
    assert row["floor_seconds"] == pytest.approx(max(by_work, by_bytes))
    assert row["bound_by"] == ("FLOPs" if by_work > by_bytes else "bytes")
    assert row["reached"] == pytest.approx(row["floor_seconds"] / row["seconds_median"])
    assert "GB/s read and written" in capsys.readouterr().out
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw(tmp_path):
    assert not picture.draw([{"name": "x", "intensity": None}], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_shapes_come_from_the_catalogue():
    config = roofline.read("configs/art_flower17.py", (), False)
    network, shape = roofline.network_of(config)
    assert network.num_classes == 17 and shape[2] == 3 and network.input_shape[0] <= shape[0]
    config.data.image_size, config.data.options = 0, {}
    with pytest.raises(InputError, match=r"set --config\.data\.image_size"):
        roofline.network_of(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paths=pgdd"], "did you mean 'pgd'"),
        (["--model=resnet18"], "the model is in the config"),
        (["--config=configs/art_digits.py", "--paths=pgd"], "expected --paths"),
        (["--config.train.batch_size=2"], "expected --paths"),
        (["--config=configs/art_digit.py"], "did you mean 'configs/art_digits.py'"),
    ],
)
def test_bad_options(arguments, message, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=message):
        roofline.main(arguments)


def test_the_floor_is_the_slower_side():
    counted = cost.Cost(100.0, 50.0, None)
    network = roofline.network_of(roofline.read("configs/art_digits.py", (), True))[0]
    for bandwidth, bound, floor in ((1000.0, "FLOPs", 10.0), (1.0, "bytes", 50.0)):
        program = training.Program(lambda: None, 0, {}, lambda: counted)
        path = roofline.Path(program, "net", 1, network, None, 1)
        row = {"seconds_median": 100.0, "batch": 1, "steps": 0, "flops": 100.0}
        found = roofline.reached(row, path, cost.Rates(10.0, bandwidth))
        assert (found["bound_by"], found["floor_seconds"], found["reached"]) == (bound, floor, floor / 100)
        assert found["intensity"] == 2.0 and found["flops_by_hand"] is None
    assert measure.rates(row, matrix_rate=1.0, forward_flops=1.0, counted=None)["floor_seconds"] is None
