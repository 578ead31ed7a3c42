"""Image towers in the checkpoints of others, written by hand; `tests/parity` has those that PyTorch writes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import safetensors.numpy

from jrobust.errors import InputError
from jrobust.models.clip import Prompts
from jrobust.models.clip.prompts import Border
from jrobust.weights.clip_layouts import to_foreign
from jrobust.weights.clip_towers import ImageTower, load_image_tower, write_image_tower
from tests.weights.clip_models import RESNET, VIT, random, same
from tests.weights.torch_files import save

MODELS = {"vit": VIT, "resnet": RESNET}
GENERATOR = np.random.default_rng(1)
HEAD = {"kernel": GENERATOR.normal(size=(6, 3)).astype("f4"), "bias": GENERATOR.normal(size=3).astype("f4")}
# What training leaves in a checkpoint; no arrays of the network.
REST = {"epoch": 9, "best_acc1": 31.5, "optimizer": {"state": {0: {"momentum": np.ones(3, "f4")}}, "param_groups": []}}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    clip = MODELS[request.param]
    params = random(clip)
    return clip, params, {name: params[name] for name in ("image", "batch_stats") if name in params}


@pytest.fixture(scope="module")
def vit():
    params = random(VIT)
    return VIT, params, {"image": params["image"]}


def visual(arrays, prefix):
    """Return the arrays of the image tower under other names, and those of the texts."""
    tower = {prefix + k.removeprefix("visual."): v for k, v in arrays.items() if k.startswith("visual.")}
    return tower, {name: array for name, array in arrays.items() if not name.startswith("visual.")}


def head(name):
    return {f"{name}.weight": HEAD["kernel"].T.copy(), f"{name}.bias": HEAD["bias"]}


def files(params):
    """Checkpoints by form: nested dicts, and whether they have a head."""
    arrays = to_foreign(params)
    bare, texts = visual(arrays, "")
    soup = {f"module.model.{name}": array for name, array in texts.items()}
    soup |= {
        f"module.{name}": a for name, a in (visual(arrays, "model.visual.")[0] | head("classification_head")).items()
    }
    return {
        "clip": (arrays | {"input_resolution": np.asarray(224)}, False),
        "clip without texts": (visual(arrays, "visual.")[0], False),
        "open_clip_text": (to_foreign(params, "open_clip_text"), False),
        "tecoa": (REST | {"vision_encoder_state_dict": bare, "state_dict": {}, "add_prompter": {}}, False),
        "bare": (bare, False),
        "masked images": (REST | {"model": visual(arrays, "backbone.")[0] | head("classifier")}, True),
        "model soups": (soup, True),
    }


def test_forms(model, tmp_path):
    clip, params, tower = model
    for name, (content, has_head) in files(params).items():
        found = load_image_tower(save(tmp_path / f"{name}.pt", content), clip)
        same(found.params, tower)
        assert found.prompts is None and (found.head is not None) == has_head, name
        if has_head:
            same(found.head, HEAD)


def test_hugging_face_with_and_without_texts(vit, tmp_path):
    clip, params, tower = vit
    arrays = to_foreign(params, "hugging_face")
    arrays |= {f"{part}_model.embeddings.position_ids": np.arange(5)[None] for part in ("vision", "text")}
    images = {name: array for name, array in arrays.items() if name.startswith("vis")}
    for content in (arrays, images):
        safetensors.numpy.save_file(content, tmp_path / "model.safetensors")
        same(load_image_tower(tmp_path / "model.safetensors", clip).params, tower)


def test_written_files_come_back_to_the_bit(model, tmp_path):
    clip, _, tower = model
    path = tmp_path / "tower.safetensors"
    for form, name in (
        ("clip", "visual."),
        ("tecoa", ""),
        ("masked_images", "backbone."),
        ("model_soups", "model.visual."),
    ):
        headed = form in ("masked_images", "model_soups")
        write_image_tower(path, ImageTower(tower, head=HEAD if headed else None), form)
        assert f"{name}conv1.weight" in safetensors.numpy.load_file(path)
        found = load_image_tower(path, clip)
        same(found.params, tower)
        same(found.head, HEAD if headed else None)


def test_forms_and_heads_that_do_not_go_together(vit, tmp_path):
    tower, path = ImageTower(vit[2]), tmp_path / "tower.safetensors"
    for wrong, form, message in (
        (tower, "teco", "did you mean 'tecoa'"),
        (tower, "model_soups", "form model_soups has a head"),
        (tower._replace(head=HEAD), "tecoa", "form tecoa has no head"),
        (tower._replace(prompts=Prompts()), "clip", "visual prompts have no place"),
    ):
        with pytest.raises(InputError, match=message):
            write_image_tower(path, wrong, form)
    assert not path.exists()


BORDER = Border(
    *(GENERATOR.normal(size=shape).astype("f4") for shape in ((2, 16, 3), (2, 16, 3), (12, 2, 3), (12, 2, 3)))
)
SIDES = {f"module.pad_{name}": side.transpose(2, 0, 1)[None].copy() for name, side in BORDER._asdict().items()}
TOKENS = {"module.prompt": GENERATOR.normal(size=(1, 5, 128)).astype("f4")}


@pytest.mark.parametrize(
    ("sides", "tokens", "expected"),
    [
        (SIDES, TOKENS, Prompts(BORDER, TOKENS["module.prompt"][0])),
        (SIDES, {}, Prompts(BORDER)),
        ({}, TOKENS, Prompts(tokens=TOKENS["module.prompt"][0])),
        ({}, {"module.prompt": np.zeros((1, 0, 128), "f4")}, None),
    ],
)
def test_prompts(vit, tmp_path, sides, tokens, expected):
    clip, params, tower = vit
    content = files(params)["tecoa"][0] | {"state_dict": sides, "add_prompter": tokens}
    found = load_image_tower(save(tmp_path / "prompts.pth.tar", content), clip)
    same(found.params, tower)
    same(found.prompts, expected)
    if expected is not None and expected.pixels is not None:
        images = jax.ShapeDtypeStruct((1, 16, 16, 3), "f4")
        jax.eval_shape(lambda x: clip.image_features(found.params, x, prompts=found.prompts), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"add_prompter": {"module.prompt": np.zeros((1, 5, 64), "f4")}},
            r"prompt has shape \(1, 5, 64\).*\(1, 5, 128\)",
        ),
        ({"state_dict": {"module.patch": np.zeros((1, 3, 4, 4), "f4")}}, "prompts patch: expected pad_up"),
        ({"state_dict": dict(list(SIDES.items())[:3])}, "prompts pad_down, pad_left, pad_up: expected"),
        ({"state_dict": SIDES | {"module.pad_left": SIDES["module.pad_up"]}}, r"pad_left has shape .*\(1, 3, 12, 2\)"),
        ({"state_dict": SIDES | {"module.pad_up": np.zeros(3, "f4")}}, "pad_up has shape"),
    ],
)
def test_prompts_that_do_not_fit(vit, tmp_path, change, message):
    path = save(tmp_path / "a.pt", files(vit[1])["tecoa"][0] | change)
    with pytest.raises(InputError, match=message) as error:
        load_image_tower(path, vit[0])
    assert "\n" not in str(error.value)


def without(form, name):
    return lambda f: {k: v for k, v in f[form][0].items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("bare", "ln_post.bias"), r"\(openai layout\) lacks ln_post.bias: expected exactly"),
        (without("clip", "visual.proj"), "lacks visual.proj"),
        (lambda f: f["bare"][0] | {"logit_bias": np.zeros(1, "f4")}, "has the surplus logit_bias"),
        (lambda f: f["clip"][0] | {"head.weight": np.zeros(1, "f4")}, "has the surplus head.weight"),
        (lambda f: f["model soups"][0] | {"module.fc.weight": np.zeros(1, "f4")}, "has the surplus fc.weight"),
        (without("model soups", "module.classification_head.bias"), "head classification_head.weight: expected"),
        (
            lambda f: {"model": f["masked images"][0]["model"] | {"classifier.weight": np.zeros((3, 5), "f4")}},
            r"classifier.weight has shape \(3, 5\), expected \(3, 6\)",
        ),
        (
            lambda f: f["bare"][0] | {"proj": np.zeros((6, 128), "f4")},
            r"proj has shape \(6, 128\), expected \(128, 6\)",
        ),
        (lambda f: f["bare"][0] | {"proj": np.zeros((128, 6), "i8")}, "proj has dtype int64, expected floating point"),
        (lambda f: f["bare"][0] | {"proj": np.full((128, 6), np.inf, "f4")}, "proj has numbers that are not finite"),
        (lambda f: {"conv1.weight": np.zeros((4, 3, 7, 7), "f4")}, "keys such as conv1.weight: expected CLIP's image"),
        (
            lambda f: {"vision_encoder_state_dict": {"fc.weight": np.zeros(3, "f4")}},
            "a.pt: vision_encoder_state_dict has",
        ),
    ],
)
def test_files_that_do_not_fit_are_one_line(vit, tmp_path, change, message):
    path = save(tmp_path / "a.pt", change(files(vit[1])))
    with pytest.raises(InputError, match=message) as error:
        load_image_tower(path, vit[0])
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_another_architecture_is_named(tmp_path):
    for theirs, ours in ((VIT, RESNET), (RESNET, VIT)):
        for name, (content, _) in files(random(theirs)).items():
            with pytest.raises(
                InputError, match=r"holds another model, this model is another model: the file has .*patch"
            ):
                load_image_tower(save(tmp_path / f"{name}.pt", content), ours)


def test_half_precision_is_widened(vit, tmp_path):
    clip, params, tower = vit
    halves = {name: array.astype("f2") for name, array in files(params)["bare"][0].items()}
    expected = jax.tree.map(lambda leaf: leaf.astype("f2").astype("f4"), tower)
    same(load_image_tower(save(tmp_path / "a.pt", halves), clip).params, expected)
