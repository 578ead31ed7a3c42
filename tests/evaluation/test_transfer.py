from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import linf, momentum
from jrobust.errors import InputError
from jrobust.evaluation import attack, robustness, transfer

SETTINGS = transfer.Settings(eps="16/255", step_size="4/255", num_steps=5)


@pytest.fixture
def other(network):
    weights = jax.tree.map(lambda leaf: leaf[..., ::-1], network.variables)
    return dataclasses.replace(network, name="other", variables=weights)


def test_diagonal_is_white_box_accuracy(network, other, photos):
    record = transfer.run(network, photos, SETTINGS, against=[other], batch_size=8, progress=False)
    for subject in (network, other):
        white = robustness.run(
            subject,
            photos,
            robustness.Settings(eps="16/255", step_size="4/255", num_steps=(5,)),
            batch_size=8,
            progress=False,
        )
        assert record.metrics[f"{subject.name} on {subject.name}"] == white.metrics["pgd_5"]
        assert record.metrics[f"{subject.name} on clean"] == white.metrics["accuracy"]


def test_columns_craft_and_rows_are_evaluated(network, other, photos):
    record = transfer.run(network, photos, SETTINGS, against=[other], batch_size=8, progress=False)
    table = record.tables["matrix"]
    assert table["columns"] == ["evaluated", "crafted on network", "crafted on other", "clean"]
    assert [row[0] for row in table["rows"]] == ["network", "other"]
    own, foreign, clean = table["rows"][0][1:]
    assert own < foreign <= clean
    images = photos.arrays()["image"].astype(np.float32) / 255
    batch = {"image": images, "label": photos.labels, "index": np.arange(22, dtype=np.int32)}
    (crafted,) = attack.craft(other, batch, [SETTINGS.crafting()], jax.random.key(0))
    predictions = network.logits(network.variables, crafted).argmax(1)
    assert record.columns["network on other"].tolist() == (predictions == photos.labels).tolist()
    assert record.columns["network on other"].tolist() != record.columns["other on network"].tolist()
    for name, estimate in record.metrics.items():
        assert estimate.value == record.columns[name].mean()
    # The images crafted on the other model are the same ones whoever is the subject.
    swapped = transfer.run(other, photos, SETTINGS, against=[network], batch_size=5, progress=False)
    assert swapped.metrics["network on other"] == record.metrics["network on other"]
    assert record.attack_steps == 22 * 5 * 2 and np.sum(record.columns["label"] >= 0) == 22


@pytest.mark.parametrize("method", ["mi_fgsm", "ni_fgsm", "di_fgsm", "ti_fgsm"])
def test_attacks_made_to_transfer(method, network, other, photos):
    settings = transfer.Settings(attack=method, eps="16/255", step_size="4/255", num_steps=3)
    record = transfer.run(network, photos, settings, against=[other], batch_size=11, progress=False)
    attack = getattr(momentum, method)
    images, labels = photos.arrays()["image"].astype(np.float32) / 255, jnp.asarray(photos.labels, jnp.int32)
    with jax.default_matmul_precision("highest"):
        crafted = attack(
            lambda x: other.logits(other.variables, x),
            images,
            labels,
            jax.random.key(0),
            threat=linf("16/255"),
            step_size="4/255",
            num_steps=3,
            unroll=False,
        ).adv_images
    predictions = network.logits(network.variables, crafted).argmax(1)
    assert record.columns["network on other"].tolist() == (predictions == labels).tolist()
    assert record.metrics["other on other"].value < record.metrics["other on clean"].value
    name = method.upper().replace("_", "-")
    assert f"second model: {name} (" in record.protocols["network on other"] and "of 3 steps" in str(record.protocols)


def test_what_cannot_be_compared(network, other, linear, photos):
    with pytest.raises(InputError, match="--against"):
        transfer.run(network, photos, SETTINGS)
    with pytest.raises(InputError, match="different names"):
        transfer.run(network, photos, SETTINGS, against=[network])
    with pytest.raises(InputError, match="2 classes"):
        transfer.run(network, photos, SETTINGS, against=[linear])


def test_every_attack_has_its_numbers():
    numbers = {name: transfer.Settings(attack=name).crafting().num_steps for name in transfer.METHODS}
    assert numbers == {"pgd": 40, "mi_fgsm": 10, "ni_fgsm": 10, "di_fgsm": 10, "ti_fgsm": 10}
    assert transfer.Settings(num_steps=7).crafting().num_steps == 7
    for fields, message in (
        ({"attack": "di_fgm"}, "unknown attack 'di_fgm'.*did you mean 'di_fgsm'"),
        ({"num_steps": -1}, "num_steps=-1"),
        ({"norm": "l3"}, "unknown norm"),
    ):
        with pytest.raises(InputError, match=message):
            transfer.Settings(**fields)
