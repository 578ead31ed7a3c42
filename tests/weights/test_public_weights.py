"""Weights published by others reach the accuracy that their author states. Needs data, hence skipped by default."""

import os
import pathlib

import jax
import numpy as np
import pytest

from jrobust.models import zoo
from jrobust.weights.load import load

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 0.9173), ("resnet56", 0.9339)])
def test_cifar_resnets_of_akamaster(name, accuracy):
    for variable in ("JROBUST_DATA", "JROBUST_WEIGHTS"):
        if variable not in os.environ:
            pytest.skip(
                "set JROBUST_DATA to the folder of cifar-10-batches-bin, JROBUST_WEIGHTS to that of the .npz files"
            )
    file = pathlib.Path(os.environ["JROBUST_DATA"]) / "cifar-10-batches-bin" / "test_batch.bin"
    rows = np.fromfile(file, np.uint8).reshape(10_000, 3073)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    section = {"name": f"{name}_cifar", "mean": MEAN, "std": STD}
    classifier = zoo.build(section, num_classes=10, input_shape=(32, 32, 3))
    shapes = jax.eval_shape(classifier.init, jax.random.key(0))
    params, stats = load(pathlib.Path(os.environ["JROBUST_WEIGHTS"]) / f"{name}_cifar10.npz", classifier, *shapes)
    classes = jax.jit(lambda x: classifier.apply(params, stats, x.astype(np.float32) / 255).logits.argmax(-1))
    found = np.concatenate([classes(images[i : i + 500]) for i in range(0, 10_000, 500)])
    assert np.mean(found == rows[:, 0]) == pytest.approx(accuracy, abs=2e-4)
