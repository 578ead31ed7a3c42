"""Fine-tune, average, learn from the average: what WiSE-KD begins with, and its KL at the first step."""

import assembly
import beginning
import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soup
from PIL import Image
from safetensors.numpy import load_file

from configs import clip_shapes
from jrobust import data
from jrobust.errors import InputError
from jrobust.models.clip import CLIP, Sizes
from jrobust.training import checkpoint, run_folder
from jrobust.training.state import TrainState
from jrobust.weights import clip_layouts

TOWERS = {"embed_dim": 8, "image_width": 16, "image_layers": 1, "image_heads": 1, "patch": 8}
TOWERS |= {"text_width": 16, "text_layers": 1, "text_heads": 1, "vocabulary": 515, "context": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of images, a small CLIP and its vocabulary."""
    root, rng = tmp_path_factory.mktemp("wise"), np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        for split, count in (("train", 8), ("test", 1)):
            (root / "oxford_pets" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "oxford_pets" / split / name / f"{i}.png")
    clip_layouts.write(root / "clip.safetensors", CLIP(Sizes(**clip_shapes.SIZES | TOWERS)).init(jax.random.key(0)))
    (root / "merges.txt").write_text("a header\nt h\n")
    return root


@pytest.fixture(scope="module")
def build(root):
    """Return the parts of a row of the ImageNet config on these images."""

    def build(row, **changes):
        changes = {"data.name": "oxford_pets", "data.dir": root, "data.held_out": 6, "train.batch_size": 16} | changes
        changes |= {"model.weights": root / "clip.safetensors", "model.vocabulary": root / "merges.txt"}
        changes |= {f"model.sizes.{name}": value for name, value in TOWERS.items()}
        changes |= {"model.template": "a {}.", "train.steps": 1, "train.log_every_steps": 1}
        words = [f"--config.{name}={value}" for name, value in changes.items()]
        return assembly.build(command.read_config(f"configs/masked_images_imagenet.py:method={row},runlocal", words))

    return build


@pytest.fixture(scope="module")
def fine_tuned(root, build):
    """A run of vanilla fine-tuning, as if trained."""
    parts, rng = build("ft"), np.random.default_rng(1)
    start = beginning.first_variables(parts)(jax.random.key(0), {})
    tuned = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), start.params)
    checkpoints = checkpoint.Checkpoints(root / "ft")
    checkpoints.save(TrainState(np.int32(1), tuned, start.state, {"unused": jnp.zeros(1)}), {})
    checkpoints.close()
    run_folder.write_json(root / "ft" / "config.json", parts.config.to_dict())
    return root / "ft"


def average(root, fine_tuned, share):
    """Return the file of the command."""
    file = root / f"wise_{share}.safetensors"
    soup.main(soup.Options(str(file), runs=[str(fine_tuned)], kind="wise", share=share, split="none"))
    return file


def logits(parts, file, images):
    """Return what a file's arrays, put together by their names, make of images; in float64."""
    params = {}
    for name, array in load_file(file).items():
        *folders, leaf = name.removeprefix("params/").split("/")
        at = params
        for folder in folders:
            at = at.setdefault(folder, {})
        at[leaf] = array
    return np.float64(parts.classifier.apply(params, {}, images).logits)


def test_the_first_step_learns_from_the_average(root, build, fine_tuned):
    original, teacher = (average(root, fine_tuned, share) for share in (0.0, 0.5))
    parts = build("wise_kd,masking=random", **{"model.teacher": teacher, "method.groups": 1})
    params, state = beginning.first_variables(parts)(jax.random.key(0), {})
    rows = next(data.TrainBatches(parts.train, 16, parts.config.seed, resident=False))
    rows["image"] = rows["image"] / np.float32(255)
    loss, (_, found) = jax.jit(parts.method.loss)(params, state, rows, jax.random.key(0))

    p, q = (np.exp(logits(parts, file, rows["image"]) / 10) for file in (teacher, original))
    p, q = (each / each.sum(1, keepdims=True) for each in (p, q))
    expected = 100 * (p * np.log(p / q)).sum(1).mean()
    assert float(found["logit_loss"]) == pytest.approx(expected, rel=1e-4) and expected > 1e-3
    assert abs(expected / (100 * (q * np.log(q / p)).sum(1).mean()) - 1) > 1e-2  # the other direction
    assert float(found["feature_loss"]) == pytest.approx(0, abs=1e-9)
    assert float(loss) == pytest.approx(float(found["cross_entropy"]) + expected, rel=1e-5)
    np.testing.assert_array_equal(state["teacher"].value["head"]["kernel"], load_file(teacher)["params/head/kernel"])


def test_whose_logits(root, build, fine_tuned):
    """Of the pre-trained model no file is asked for, and none is taken."""
    parts = build("masked_kd", **{"method.groups": 1})
    params, state = beginning.first_variables(parts)(jax.random.key(0), {})
    jax.tree.map(np.testing.assert_array_equal, state["teacher"].value, params)
    file = root / "clip.safetensors"
    for row, given, message in (
        ("wise_kd", "", r"model.teacher is '': method.logit_weight needs the file of a fine-tuned network"),
        ("wise_kd", "none.pth", r"model.teacher is 'none.pth': method.logit_weight needs the file"),
        ("kd", file, r"the method learns from no logits of a file: set method.logit_weight, and logit_teacher to"),
        ("lp", file, "the method learns from no logits of a file"),
    ):
        with pytest.raises(InputError, match=message):
            beginning.first_variables(build(row, **{"model.teacher": given}))
