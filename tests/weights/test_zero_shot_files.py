"""The library's own files of a CLIP that is a classifier, and others' image towers for it."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jrobust.errors import InputError
from jrobust.models import zoo
from jrobust.weights import arrays, safetensors_file, stablehlo
from jrobust.weights.clip_layouts import to_foreign
from jrobust.weights.clip_towers import ImageTower, write_image_tower
from jrobust.weights.load import load
from jrobust.weights.trees import named
from tests.weights.clip_models import RESNET, VIT, random, same
from tests.weights.torch_files import save

PROMPTS = {"pixels": "border", "width": 2, "tokens": 5}
CASES = {"vit": (VIT, {}), "prompts": (VIT, PROMPTS), "resnet": (RESNET, {})}
NAMES = ("cat", "dog", "eel")


def build(clip, prompts, classes=3):
    section = {"name": "clip", "architecture": "", "sizes": dataclasses.asdict(clip.sizes), "activation": "gelu"}
    section |= {"prompts": prompts, "weights": "clip.pt", "template": "a {}.", "mean": (0.5,) * 3, "std": (0.2,) * 3}
    classifier = zoo.build(section, num_classes=classes, input_shape=(32, 32, 3))
    generator = np.random.default_rng(2)
    shapes = jax.eval_shape(classifier.init, jax.random.key(0))
    return section, classifier, jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(params=list(CASES))
def model(request):
    return build(*CASES[request.param])


def blank(variables):
    return jax.tree.map(np.zeros_like, variables)


def write(path, section, classifier, variables, **more):
    return safetensors_file.write(path, classifier, *variables, model=section, class_names=NAMES, **more)


def test_own_files_come_back_to_the_bit(model, tmp_path):
    section, classifier, variables = model
    path = tmp_path / "model.safetensors"
    write(path, section, classifier, variables)
    same(load(path, classifier, *blank(variables)), variables)
    file = safetensors_file.read(path)
    assert safetensors_file.classifier(file.manifest) == classifier
    same(named(file.params), named(variables[0]))
    same(named(file.batch_stats), named(variables[1]))


def test_names_and_manifest(tmp_path):
    section, classifier, variables = build(VIT, PROMPTS)
    path, began = tmp_path / "model.safetensors", tmp_path / "clip.pt"
    began.write_bytes(b"weights")
    manifest = write(path, section, classifier, variables, source=arrays.source(began))
    assert manifest["source"] == {"file": "clip.pt", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert manifest["model"]["activation"] == "gelu" and manifest["preprocessing"]["resize_to"] == 16
    found = safetensors.numpy.load_file(path)
    assert found["params/pixels/left"].shape == (12, 2, 3) and found["params/tokens"].shape == (5, 128)
    np.testing.assert_array_equal(found["state/text"], variables[1]["text"].value)
    assert {"state/logit_scale", "state/tower/blocks_1/attn/query/kernel"} < set(found)
    assert write(path, section, classifier, variables)["source"] == {}
    with pytest.raises(InputError, match="cannot be read"):
        arrays.source(tmp_path / "none.pt")


def test_files_of_other_functions_are_refused(tmp_path):
    section, classifier, variables = build(VIT, {})
    path = tmp_path / "model.safetensors"
    write(path, section, classifier, variables)
    for change, message in (
        ({"activation": "quick_gelu"}, "with the activation gelu, this model has quick_gelu"),
        ({"mean": (0.4,) * 3}, "set model.mean to that of the file"),
    ):
        other = dataclasses.replace(classifier, clip=dataclasses.replace(classifier.clip, **change))
        with pytest.raises(InputError, match=message):
            load(path, other, *variables)
    for other, message in (((VIT, PROMPTS), "lacks pixels/up.*surplus blocks_0"), ((RESNET, {}), "surplus")):
        with pytest.raises(InputError, match=message):
            load(path, build(*other)[1], *build(*other)[2])


def test_texts_of_other_classes(tmp_path):
    section, classifier, variables = build(VIT, {})
    path = tmp_path / "model.safetensors"
    write(path, section, classifier, variables)
    _, other, fresh = build(VIT, {}, classes=4)
    with pytest.raises(InputError, match=r"text has shape \(3, 6\), expected \(4, 6\).*new head"):
        load(path, other, *fresh)
    params, state = load(path, other, *blank(fresh[:1]), fresh[1], replace_head=True)
    same(params, variables[0])
    same(state, variables[1] | {"text": fresh[1]["text"]})


def test_image_towers_of_others_leave_texts_as_they_are(tmp_path):
    for clip, prompts in ((VIT, {}), (RESNET, {}), (VIT, PROMPTS)):
        _, classifier, (params, state) = build(clip, prompts)
        whole = random(clip)
        path = tmp_path / "tower.safetensors"
        write_image_tower(path, ImageTower({k: whole[k] for k in ("image", "batch_stats") if k in whole}), "tecoa")
        if prompts:
            with pytest.raises(InputError, match=r"visual prompts layout\) lacks pixels/down"):
                load(path, classifier, params, state)
            visual = {k.removeprefix("visual."): v for k, v in to_foreign(whole).items() if k.startswith("visual.")}
            sides = {f"pad_{k}": np.asarray(v).transpose(2, 0, 1)[None] for k, v in params.pixels._asdict().items()}
            content = {"vision_encoder_state_dict": visual, "state_dict": sides}
            path = save(tmp_path / "a.pth.tar", content | {"add_prompter": {"prompt": np.asarray(params.tokens)[None]}})
            new = load(path, classifier, blank(params), state)
            same(new[0], params)
            same(named(new[1]["tower"]), named(whole["image"]))
        else:
            new = load(path, classifier, blank(params), state)
            same(new[0], whole["image"])
        if "batch_stats" in whole:
            same(named(new[1]["batch_stats"]), named(whole["batch_stats"]))
        for name in ("text", "logit_scale"):
            same(new[1][name], state[name])


def test_a_program(tmp_path):
    sizes = dataclasses.replace(VIT.sizes, image_width=8, image_layers=1, image_heads=2, text_layers=1)
    _, classifier, variables = build(dataclasses.replace(VIT, sizes=sizes), {})
    path = tmp_path / "model.stablehlo"
    logits = lambda images: classifier.apply(*variables, images).logits
    said = stablehlo.write(path, logits, classifier, source={"file": "a.pt", "sha256": "0"})
    assert said["source"]["file"] == "a.pt" and said["input"]["resize_to"] == 16
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype("f4")
    np.testing.assert_allclose(
        jax.export.deserialize(path.read_bytes()).call(images), jax.jit(logits)(images), atol=1e-4
    )
