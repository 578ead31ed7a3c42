"""launch/export.py on the folder of a run of the digits config."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from configs import art_digits
from jrobust.data import channel_statistics, load
from jrobust.models import zoo
from jrobust.models.tree import unflatten
from jrobust.training import state
from jrobust.training.checkpoint import Checkpoints
from jrobust.training.method import Variables
from jrobust.weights import safetensors_file
from jrobust.weights.load import load as load_weights

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with one checkpoint of untrained variables; its classifier and those variables."""
    workdir = tmp_path_factory.mktemp("run")
    config = art_digits.get_config("variant=art")
    source = load("digits", "train")
    config.model.mean, config.model.std = channel_statistics(source)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    classifier = zoo.build(config.model, num_classes=10, input_shape=source.image_shape)
    variables = Variables(*classifier.init(jax.random.key(0, impl="rbg")))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state.create(variables, optax.sgd(0.1)), {})
    checkpoints.close()
    return workdir, classifier, variables


def export(*arguments):
    command = [sys.executable, str(LAUNCH / "export.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_alone_gives_the_logits_of_the_run_to_the_bit(run, tmp_path):
    workdir, classifier, variables = run
    output = tmp_path / "digits.safetensors"
    result = export(f"--workdir={workdir}", f"--output={output}", "--format=safetensors", "--step=0")
    assert result.returncode == 0, result.stderr
    assert "14,458 parameters" in result.stdout
    assert str(output) in result.stdout
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    expected = classifier.apply(*variables, images).logits
    tree = unflatten(safetensors.numpy.load_file(output))
    np.testing.assert_array_equal(classifier.apply(tree["params"], tree["batch_stats"], images).logits, expected)
    file = safetensors_file.read(output)
    assert safetensors_file.classifier(file.manifest) == classifier
    assert file.manifest["class_names"] == [str(digit) for digit in range(10)]
    assert (file.manifest["data_set"], file.manifest["threat_model"]) == ("digits", "Linf 0.1")
    assert file.manifest["extra"]["step"] == 0
    assert file.manifest["extra"]["method"]["name"] == "art"


def test_pytorch_names(run, tmp_path):
    workdir, classifier, variables = run
    output = tmp_path / "torch.safetensors"
    result = export(f"--workdir={workdir}", f"--output={output}", "--format=torch")
    assert result.returncode == 0, result.stderr
    assert safetensors.numpy.load_file(output)["conv1.weight"].shape == (16, 1, 3, 3)
    jax.tree.map(np.testing.assert_array_equal, Variables(*load_weights(output, classifier, *variables)), variables)


def test_a_program_with_the_weights_inside(run, tmp_path):
    workdir, classifier, variables = run
    output = tmp_path / "digits.stablehlo"
    result = export(f"--workdir={workdir}", f"--output={output}", "--format=stablehlo")
    assert result.returncode == 0, result.stderr
    assert f"{output}.json" in result.stdout
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    model = jax.export.deserialize(output.read_bytes())
    np.testing.assert_allclose(model.call(images), classifier.apply(*variables, images).logits, atol=1e-5)
    said = json.loads(output.with_name("digits.stablehlo.json").read_text())
    assert (said["threat_model"], said["extra"]["method"]["name"]) == ("Linf 0.1", "art")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=RUN", "--output=a.safetensors", "--format=safetensor"], "did you mean 'safetensors'"),
        (["--workdir=RUN", "--output=a.safetensors", "--step=7"], "no checkpoint of step 7"),
    ],
)
def test_mistakes_end_with_one_line(run, arguments, message):
    result = export(*(argument.replace("RUN", str(run[0])) for argument in arguments))
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
