from __future__ import annotations

import json

import jax
import ml_collections
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.evaluation import Record, Subject, robustness, run_suites, suites

EVALUATION = ml_collections.ConfigDict(
    {
        "after_training": ("accuracy",),
        "batch_size": 8,
        "examples": 12,
        "robustness": {
            "eps": "8/255",
            "step_size": "2/255",
            "num_steps": (2,),
            "sweep_linf": ("2/255",),
            "sweep_steps": 2,
        },
        "attribution": {
            "num_steps": 2,
            "top_k": 5,
            "num_points": 3,
            "chunk": 3,
            "examples": 4,
            "batch_size": 3,
            "sweep": (),
        },
    }
)


def test_records_are_written_with_the_hash_of_the_config(network, photos, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"seed": 0}')
    records = run_suites(["accuracy", "robustness", "attribution"], network, photos, EVALUATION, tmp_path, seed=3)
    assert [record.suite for record in records] == ["accuracy", "robustness", "attribution"]
    assert [record.examples for record in records] == [12, 12, 4]
    for record in records:
        back = Record.read(tmp_path / "evaluation" / f"{record.suite}.json")
        assert back.metrics == record.metrics and back.seed == 3
        assert back.config_hash == suites.config_hash(tmp_path)
    assert "robustness.csv" in capsys.readouterr().err
    assert json.loads((tmp_path / "evaluation" / "robustness.json").read_text())["settings"]["num_steps"] == [2]


def test_without_a_folder_nothing_is_written(network, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (record,) = run_suites(["accuracy"], network, photos, {}, progress=False)
    assert record.examples == 22 and not list(tmp_path.iterdir())


def test_settings_come_from_the_section_and_the_defaults():
    settings = suites.settings_of("robustness", EVALUATION.robustness)
    assert settings.num_steps == (2,) and settings.sweep_l2 == () and settings.random_start
    assert suites.settings_of("transfer", {}).crafting().num_steps == 40


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["robustnes"], {}, "unknown suite 'robustnes'.*did you mean 'robustness'"),
        (
            ["robustness"],
            {"robustness": {"epss": "1"}},
            "unknown setting of suite robustness 'epss'.*did you mean 'eps'",
        ),
        (["accuracy", "localization"], {}, "has no boxes"),
        (["accuracy", "attribution"], {}, "top_k=100 of images of 6 x 6"),
        (["accuracy", "transfer"], {}, "--against"),
        (["accuracy"], {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_all_is_checked_before_anything_runs(network, photos, names, settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run_suites(names, network, photos, settings, tmp_path)
    assert not list(tmp_path.iterdir())


def test_images_are_checked_as_they_are_cropped(network, photos):
    section = {"attribution": {"top_k": 20}}
    assert suites.check(["attribution"], network, photos, section)["attribution"].top_k == 20
    with pytest.raises(InputError, match="top_k=20 of images of 4 x 4"):
        suites.check(["attribution"], network, photos, section, crop_size=4)


def test_batch_size_is_rounded_up_to_the_devices(network, photos):
    shapes = []

    def logits(weights, images, *, beta=None):
        shapes.append(images.shape[0])
        return network.logits(weights, images)

    bound = jax.device_put(network.variables, jax.devices()[0])  # as a checkpoint may leave them
    subject = Subject("counted", network.class_names, logits, bound)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run_suites(["accuracy"], subject, photos, {"batch_size": 5}, mesh=mesh, progress=False)
    assert set(shapes) == {8}


def test_a_subject_of_ones_own():
    subject = Subject("mine", ["a", "b"], lambda weights, images, beta=None: images.mean((1, 2)) @ weights, np.eye(2))
    assert subject.parameters == 4
    with pytest.raises(InputError, match="not hashable"):
        Subject("mine", ["a"], type("F", (), {"__hash__": None, "__call__": lambda *a: 0})())


def test_every_suite_has_the_same_face():
    for module in suites.SUITES.values():
        assert module.__doc__ and module.Settings.__doc__ and module.run.__doc__
    assert isinstance(suites.settings_of("robustness", {}), robustness.Settings)
