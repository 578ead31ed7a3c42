"""The exported program answers logits and input gradients in a process that knows nothing of this library."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.weights import stablehlo

READER = """
import sys, jax, numpy as np
model = jax.export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
run = lambda x: (model.call(x), jax.grad(lambda x: model.call(x)[:, 1].sum())(x))
logits, gradient = run(images)
one = model.call(images[:1])
assert not {"jrobust", "flax", "optax"} & set(sys.modules)
np.savez(sys.argv[3], logits=logits, gradient=gradient, one=one, platforms=model.platforms)
"""


def test_a_process_with_jax_alone_gets_logits_and_gradients(variables, tmp_path):
    classifier, params, stats = variables("small_cnn", width=4, size=8, num_classes=5, fsr={"hidden": 3})
    path, names = tmp_path / "model.stablehlo", list("abcde")
    logits = lambda images: classifier.apply(params, stats, images, mask_mode="mean").logits
    written = stablehlo.write(path, logits, classifier, class_names=names, data_set="digits", extra={"step": 3})
    images = np.random.default_rng(0).uniform(size=(3, *classifier.input_shape)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    out = tmp_path / "out.npz"
    (tmp_path / "reader.py").write_text(READER)
    command = [sys.executable, "-I", "reader.py", path, tmp_path / "images.npy", out]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    found = np.load(out)
    expected = jax.jit(logits)(images)
    gradient = jax.jit(jax.grad(lambda x: logits(x)[:, 1].sum()))(images)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["one"], expected[:1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["gradient"], gradient, rtol=1e-5, atol=1e-5)
    assert {"cpu", "cuda", "tpu"} <= set(found["platforms"])

    assert json.loads((tmp_path / "model.stablehlo.json").read_text()) == written
    assert written["class_names"] == names and written["extra"] == {"step": 3} and written["data_set"] == "digits"
    assert written["input"]["mean"] == [0.5] * 3 and written["versions"]["jax"] == jax.__version__
    assert written["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert any("jax.export.deserialize(open('model.stablehlo'" in line for line in written["use"])


def test_what_cannot_be_written_is_one_clear_line(variables, tmp_path, monkeypatch):
    classifier, params, stats = variables("small_cnn", width=4)
    write = lambda name, **more: stablehlo.write(
        tmp_path / name, lambda x: classifier.apply(params, stats, x).logits, classifier, **more
    )
    with pytest.raises(InputError, match=r"expected a name such as model.stablehlo"):
        write("model.mlir")
    with pytest.raises(InputError, match="2 class names for 10 classes"):
        write("model.stablehlo", class_names=["a", "b"])
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(InputError, match="pip install flatbuffers"):
        write("model.stablehlo")
    assert not list(tmp_path.iterdir())
