"""CLIP's weights under the names of others: a second writing of the mapping, round trips, and files that do not fit."""

from __future__ import annotations

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models.clip import ARCHITECTURES, CLIP
from jrobust.models.tree import flatten
from jrobust.weights import clip_layouts
from jrobust.weights.clip_layouts import LAYOUTS, architecture, from_foreign, to_foreign
from tests.weights.clip_models import RESNET, VIT, random, same


@pytest.fixture(scope="module")
def vit():
    return VIT, random(VIT)


@pytest.fixture(scope="module")
def resnet():
    return RESNET, random(RESNET)


def joined(block, leaf):
    """Return query, key and value as PyTorch has them: rows are outputs, heads one after the other."""
    parts = [np.asarray(block["attn"][name][leaf]) for name in ("query", "key", "value")]
    if leaf == "bias":
        return np.concatenate([part.ravel() for part in parts])
    return np.concatenate([part.reshape(part.shape[0], -1).T for part in parts])


def openai_transformer(tree, before):
    for name, block in tree.items():
        if name.startswith("blocks_"):
            start = f"{before}transformer.resblocks.{name.removeprefix('blocks_')}."
            yield f"{start}attn.in_proj_weight", joined(block, "kernel")
            yield f"{start}attn.in_proj_bias", joined(block, "bias")
            out = block["attn"]["out"]
            yield f"{start}attn.out_proj.weight", out["kernel"].reshape(-1, out["kernel"].shape[-1]).T
            yield f"{start}attn.out_proj.bias", out["bias"]
            for theirs, ours in (("c_fc", "fc1"), ("c_proj", "fc2")):
                yield f"{start}mlp.{theirs}.weight", block["mlp"][ours]["kernel"].T
                yield f"{start}mlp.{theirs}.bias", block["mlp"][ours]["bias"]
            for norm in ("ln_1", "ln_2"):
                yield f"{start}{norm}.weight", block[norm]["scale"]
                yield f"{start}{norm}.bias", block[norm]["bias"]


def openai_text(params, before=""):
    text = params["text"]
    yield "logit_scale", params["logit_scale"]
    yield f"{before}token_embedding.weight", text["token_embedding"]["embedding"]
    yield f"{before}positional_embedding", text["pos_embedding"]
    yield f"{before}ln_final.weight", text["ln_final"]["scale"]
    yield f"{before}ln_final.bias", text["ln_final"]["bias"]
    yield f"{before}text_projection", text["proj"]["kernel"]
    yield from openai_transformer(text, before)


def openai_vit(params, before=""):
    image = params["image"]
    yield from openai_text(params, before)
    yield "visual.conv1.weight", image["patch_embed"]["kernel"].transpose(3, 2, 0, 1)
    yield "visual.class_embedding", image["class_embedding"]
    yield "visual.positional_embedding", image["pos_embedding"]
    yield "visual.proj", image["proj"]["kernel"]
    for norm in ("ln_pre", "ln_post"):
        yield f"visual.{norm}.weight", image[norm]["scale"]
        yield f"visual.{norm}.bias", image[norm]["bias"]
    yield from openai_transformer(image, "visual.")


def openai_resnet(params):
    image, stats = params["image"], params["batch_stats"]["image"]

    def norm(name, scale, running):
        yield f"{name}.weight", scale["scale"]
        yield f"{name}.bias", scale["bias"]
        yield f"{name}.running_mean", running["mean"]
        yield f"{name}.running_var", running["var"]

    yield from openai_text(params)
    for own, leaves in image.items():
        if own != "attnpool":
            start = "visual." if own == "stem" else f"visual.{own.replace('_', '.')}."
            for number in (1, 2, 3):
                yield f"{start}conv{number}.weight", leaves[f"conv{number}"]["kernel"].transpose(3, 2, 0, 1)
                yield from norm(f"{start}bn{number}", leaves[f"bn{number}"], stats[own][f"bn{number}"])
            if "down_conv" in leaves:
                yield f"{start}downsample.0.weight", leaves["down_conv"]["kernel"].transpose(3, 2, 0, 1)
                yield from norm(f"{start}downsample.1", leaves["down_bn"], stats[own]["down_bn"])
    pool = image["attnpool"]
    yield "visual.attnpool.positional_embedding", pool["pos_embedding"]
    for own in ("query", "key", "value"):
        kernel = pool[own]["kernel"]
        yield f"visual.attnpool.{own[0]}_proj.weight", kernel.reshape(kernel.shape[0], -1).T
        yield f"visual.attnpool.{own[0]}_proj.bias", pool[own]["bias"].ravel()
    yield "visual.attnpool.c_proj.weight", pool["out"]["kernel"].reshape(-1, RESNET.sizes.embed_dim).T
    yield "visual.attnpool.c_proj.bias", pool["out"]["bias"]


def hugging_face(params):
    yield "logit_scale", params["logit_scale"]
    for tower, theirs in (("image", "vision_model"), ("text", "text_model")):
        tree = params[tower]
        yield f"{theirs}.embeddings.position_embedding.weight", tree["pos_embedding"]
        projection = "visual_projection" if tower == "image" else "text_projection"
        yield f"{projection}.weight", tree["proj"]["kernel"].T
        norms = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm", "ln_final": "final_layer_norm"}
        for own in norms.keys() & tree.keys():
            yield f"{theirs}.{norms[own]}.weight", tree[own]["scale"]
            yield f"{theirs}.{norms[own]}.bias", tree[own]["bias"]
        for name, block in tree.items():
            if name.startswith("blocks_"):
                start = f"{theirs}.encoder.layers.{name.removeprefix('blocks_')}."
                for leaf in ("weight", "bias"):
                    thirds = np.split(joined(block, "kernel" if leaf == "weight" else "bias"), 3)
                    for own, third in zip("qkv", thirds, strict=True):
                        yield f"{start}self_attn.{own}_proj.{leaf}", third
                out = block["attn"]["out"]
                yield f"{start}self_attn.out_proj.weight", out["kernel"].reshape(-1, out["kernel"].shape[-1]).T
                yield f"{start}self_attn.out_proj.bias", out["bias"]
                for number in (1, 2):
                    yield f"{start}layer_norm{number}.weight", block[f"ln_{number}"]["scale"]
                    yield f"{start}layer_norm{number}.bias", block[f"ln_{number}"]["bias"]
                    yield f"{start}mlp.fc{number}.weight", block["mlp"][f"fc{number}"]["kernel"].T
                    yield f"{start}mlp.fc{number}.bias", block["mlp"][f"fc{number}"]["bias"]
    yield "vision_model.embeddings.class_embedding", params["image"]["class_embedding"]
    kernel = params["image"]["patch_embed"]["kernel"]
    yield "vision_model.embeddings.patch_embedding.weight", kernel.transpose(3, 2, 0, 1)
    yield "text_model.embeddings.token_embedding.weight", params["text"]["token_embedding"]["embedding"]


CASES = {
    "openai": ("vit", "openai", openai_vit),
    "resnet": ("resnet", "openai", openai_resnet),
    "open_clip_text": ("vit", "open_clip_text", lambda params: openai_vit(params, "text.")),
    "hugging_face": ("vit", "hugging_face", hugging_face),
}


@pytest.mark.parametrize("case", CASES)
def test_names_and_axes_are_those_of_the_table_and_come_back_to_the_bit(request, case):
    model, layout, reference = CASES[case]
    clip, params = request.getfixturevalue(model)
    expected, found = dict(reference(params)), to_foreign(params, layout)
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].flags.c_contiguous and found[name].shape == np.shape(array)
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    same(from_foreign(expected, clip, source="file"), params)
    assert architecture(expected, "file") == clip.sizes


@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [("ViT-B/32", "openai", 302), ("ViT-B/32", "hugging_face", 398), ("RN50", "openai", 489 - 55)],
)
def test_a_released_model_has_as_many_names_as_its_file(name, layout, count):
    """But for the counters of its 55 batch norms."""
    tree = flatten(jax.eval_shape(CLIP(ARCHITECTURES[name]).init, jax.random.key(0)))
    names = {LAYOUTS[layout].foreign(path)[0]: (1,) for path in tree}
    assert len(names) == count


def test_what_is_passed_over(vit, resnet):
    for (clip, params), layout in ((vit, "openai"), (vit, "hugging_face"), (resnet, "openai")):
        arrays = to_foreign(params, layout)
        more = {"input_resolution": 224, "context_length": 77, "vocab_size": 11, "visual.bn1.num_batches_tracked": 3}
        if layout == "hugging_face":
            more = {f"{tower}_model.embeddings.position_ids": np.arange(5)[None] for tower in ("text", "vision")}
        arrays |= {name: np.asarray(value) for name, value in more.items()}
        same(from_foreign({f"module.{k}": v for k, v in arrays.items()}, clip, source="file"), params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(vit, dtype):
    clip, params = vit
    halves = {name: array.astype(dtype) for name, array in to_foreign(params).items()}
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params)
    same(from_foreign(halves, clip, source="file"), expected)


def without(*names):
    return lambda arrays: {name: array for name, array in arrays.items() if name not in names}


def shaped(name, shape):
    return lambda arrays: arrays | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("visual.ln_post.bias"), r"f \(openai layout\) lacks visual.ln_post.bias: expected exactly"),
        (without("transformer.resblocks.0.ln_1.weight"), "lacks transformer.resblocks.0.ln_1.weight"),
        (without("visual.proj", "ln_final.bias"), "lacks ln_final.bias, visual.proj"),
        (shaped("visual.ln_extra.weight", 3), "has the surplus visual.ln_extra.weight"),
        (shaped("logit_bias", ()), "has the surplus logit_bias"),
        (shaped("ln_final.bias", 191), r"ln_final.bias has shape \(191,\), expected \(192,\)"),
        (shaped("visual.transformer.resblocks.1.attn.in_proj_bias", 128), r"\(128,\), expected \(384,\)"),
        (shaped("visual.proj", (6, 128)), r"visual.proj has shape \(6, 128\), expected \(128, 6\)"),
        (lambda a: a | {"logit_scale": np.asarray(3)}, "logit_scale has dtype int64, expected floating point"),
        (without("text_projection"), "read from text_projection, the file lacks it"),
        (shaped("visual.conv1.weight", (3, 4)), r"from visual.conv1.weight, the file has the shape \(3, 4\)"),
        (without("token_embedding.weight"), "expected CLIP's weights.*openai, open_clip_text, hugging_face"),
        (lambda a: {}, "keys such as none"),
        (shaped("visual.positional_embedding", (26, 128)), "file has image_size 40 and not 16"),
        (shaped("transformer.resblocks.3.ln_1.weight", 192), "file has text_layers 4 and not 3"),
    ],
)
def test_files_that_do_not_fit_are_one_line(vit, change, message):
    clip, params = vit
    with pytest.raises(InputError, match=message) as error:
        from_foreign(change(to_foreign(params)), clip, source="f")
    assert "\n" not in str(error.value)


def test_another_architecture_is_named(vit, resnet):
    for clip, params in ((vit[0], resnet[1]), (resnet[0], vit[1])):
        with pytest.raises(InputError, match=r"holds another model, this model is another model: the file has .*patch"):
            from_foreign(to_foreign(params), clip, source="f")
    shapes = {
        "token_embedding.weight": (49408, 512),
        "text_projection": (512, 512),
        "positional_embedding": (77, 512),
        "visual.conv1.weight": (768, 3, 16, 16),
        "visual.positional_embedding": (197, 768),
        "transformer.resblocks.11.ln_1.weight": (512,),
        "visual.transformer.resblocks.11.ln_1.weight": (768,),
    }
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert architecture(arrays, "f") == ARCHITECTURES["ViT-B/16"]
    message = "f holds ViT-B/16, this model is ViT-B/32: the file has patch 16 and not 32$"
    with pytest.raises(InputError, match=message):
        from_foreign(arrays, CLIP(ARCHITECTURES["ViT-B/32"]), source="f")


def test_other_heads_are_the_model_s_own_business(vit):
    clip, params = vit
    other = CLIP(dataclasses.replace(VIT.sizes, image_heads=4))
    new = from_foreign(to_foreign(params), other, source="f")
    assert new["image"]["blocks_0"]["attn"]["query"]["kernel"].shape == (128, 4, 32)
    same(to_foreign(new), to_foreign(params))
    assert clip.sizes.image_heads == 2


def test_files(vit, resnet, tmp_path):
    clip, params = vit
    for layout in LAYOUTS:
        clip_layouts.write(tmp_path / "a.safetensors", params, layout)
        same(clip_layouts.load(tmp_path / "a.safetensors", clip), params)
    with pytest.raises(InputError, match="did you mean 'openai'"):
        clip_layouts.write(tmp_path / "a.safetensors", params, "openia")
    with pytest.raises(InputError, match="hugging_face has no ResNet"):
        clip_layouts.write(tmp_path / "a.safetensors", resnet[1], "hugging_face")
    with pytest.raises(InputError, match="there is no file"):
        clip_layouts.load(tmp_path / "none.pt", clip)
