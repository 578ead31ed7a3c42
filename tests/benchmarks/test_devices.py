import jax
import numpy as np
import pytest

from benchmarks import devices, options
from jrobust import methods
from jrobust.errors import InputError
from jrobust.training import collectives

PARAMS = {"a": np.float32([1, -4]), "b": np.float32([2])}
SENT = {"all-reduce": collectives.Traffic(3, 12), "all-gather": collectives.Traffic(1, 6)}


def test_every_method_is_compared():
    found = {devices.config_of(name, "float32").method.name for name in devices.CASES}
    assert found == set(methods.METHODS)


def test_distance_is_relative_to_the_largest_parameter():
    other = {"a": np.float32([1, -4]), "b": np.float32([1])}
    assert devices.distance(PARAMS, PARAMS) == 0
    assert devices.distance(PARAMS, other) == 0.25
    assert devices.distance(PARAMS, PARAMS | {"b": np.float32([np.nan])}) == float("inf")


@pytest.mark.parametrize(
    ("single", "double", "equal"),
    [(3e-6, None, True), (1e-2, 0.0, True), (1e-2, 1e-2, False), (float("nan"), float("nan"), False)],
)
def test_rounding_is_told_from_a_mistake(single, double, equal, monkeypatch):
    """A row above the limit is judged in float64, and there alone."""
    taken = []

    def trained(name, dtype, batch, steps, mode, count):
        taken.append(dtype)
        off = 0.0 if count == 1 else {"float32": single, "float64": double}[dtype]
        return devices.Trained(PARAMS, PARAMS | {"b": np.float64([2 + 4 * off])}, SENT)

    monkeypatch.setattr(devices, "trained", trained)
    rows = devices.compare("standard", "float32", 16, 2)
    assert [row["mode"] for row in rows] == ["jit", "pmap"]
    for row in rows:
        assert row["equal"] is equal and ("difference_float64" in row) == (double is not None)
        assert np.isnan(single) == (row["difference"] is None)
        assert (row["collectives"], row["bytes_sent"], row["kinds"]) == (4, 18, "3 all-reduce, 1 all-gather")
    assert taken.count("float64") == (0 if double is None else 3)
    assert any("NOT EQUAL" in line for line in devices.notes(rows)) is not equal


def test_a_method_on_all_devices_and_on_one():
    for row in devices.compare("standard", "float32", jax.device_count(), 1):
        assert row["equal"] and row["difference"] < devices.LIMITS["float32"] < 1e-3 < row["moved"]
        assert row["collectives"] == row["traffic"]["all-reduce"]["operations"] and row["sent_over_parameters"] >= 1


def test_a_method_that_forgets_the_other_devices_is_seen(monkeypatch):
    """By the second step: before the first the student is its teacher, and what is masked has no gradient."""
    one = devices.trained("masked_images-single", "float32", 16, 2, "jit", 1)
    monkeypatch.setattr(methods.MaskedImages, "with_axis", lambda self, axis: self)
    many = devices.trained("masked_images-single", "float32", 16, 2, "jit", 8)
    assert devices.distance(one.params, many.params) > 10 * devices.LIMITS["float32"]


def test_bad_options(monkeypatch):
    monkeypatch.setattr(options, "simulate_devices", lambda count: None)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match="did you mean 'lff'"):
        devices.main(["--methods=lf"])
    with pytest.raises(InputError, match="does not divide by 8 devices"):
        devices.main(["--batch=12"])
