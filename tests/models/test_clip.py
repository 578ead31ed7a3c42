"""CLIP without PyTorch: sizes, golden features, masks, hooks, prompts, types, and what is refused."""

import dataclasses
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models.clip import ARCHITECTURES, CLIP, Prompts, Sizes
from jrobust.models.clip.clip import MEAN, STD
from jrobust.models.tree import flatten, unflatten

COUNTS = [
    ("ViT-B/32", 87_849_216, 151_277_313),
    ("ViT-B/16", 86_192_640, 149_620_737),
    ("ViT-L/14", 303_966_208, 427_616_513),
    ("ViT-L/14@336px", 304_293_888, 427_944_193),
    ("RN50", 38_316_896, 102_007_137),
    ("RN101", 56_259_936, 119_688_033),
    ("RN50x4", 87_137_080, 178_300_601),
    ("RN50x16", 167_328_912, 290_979_217),
    ("RN50x64", 420_380_352, 623_258_305),
]
TEXT = {"text_width": 64, "text_layers": 1, "vocabulary": 20, "context": 6}
VIT = Sizes(4, 16, 64, 2, 8, **TEXT)
RESNET = Sizes(4, 64, 4, (1, 1, 1, 1), None, **TEXT)
TOKENS = np.array([[18, 3, 19, 0, 0, 0], [18, 4, 7, 2, 19, 0], [18, 1, 19, 5, 19, 6]], np.int32)


def filled(clip):
    """Numbers for every leaf, far from any start: waves of an amplitude that keeps activations alive."""
    leaves = flatten(jax.eval_shape(clip.init, jax.random.key(0)))
    tree = {}
    for k, (path, leaf) in enumerate(sorted(leaves.items())):
        amplitude = 2 * math.prod(leaf.shape[:-1]) ** -0.5 if path.endswith("kernel") else 0.4
        wave = amplitude * np.sin(k + np.arange(math.prod(leaf.shape)) ** 1.3).reshape(leaf.shape)
        tree[path] = jnp.asarray(wave + path.endswith(("scale", "var")), jnp.float32)
    return unflatten(tree)


@pytest.fixture(scope="module")
def vit():
    clip = CLIP(VIT)
    images = jnp.asarray(0.5 + 0.5 * np.sin(np.arange(2 * 8 * 8 * 3) ** 1.3).reshape(2, 8, 8, 3), jnp.float32)
    return clip, filled(clip), images


@pytest.fixture(scope="module")
def read(vit):
    """Text features of rows of six ids, compiled once."""
    clip, params, _ = vit
    return jax.jit(lambda tokens: clip.text_features(params, tokens))


def parameters(sizes):
    """The leaves of `init`, without computing anything."""
    tree = jax.eval_shape(CLIP(sizes).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten(tree).items() if not path.startswith("batch_stats")}


@pytest.mark.parametrize(("name", "image", "total"), COUNTS)
def test_parameter_counts(name, image, total):
    """Traced with one block a transformer and two a stage, the last of which stands for those left out."""
    sizes, times = ARCHITECTURES[name], {"text/blocks_0": 12}
    if sizes.patch:
        short, times["image/blocks_0"] = 1, sizes.image_layers
    else:
        short, times = (2, 2, 2, 2), times | {f"image/layer{i}_1": n - 1 for i, n in enumerate(sizes.image_layers, 1)}
    leaves = parameters(dataclasses.replace(sizes, image_layers=short, text_layers=1))
    counts = {p: math.prod(shape) * times.get("/".join(p.split("/")[:2]), 1) for p, shape in leaves.items()}
    assert sum(n for path, n in counts.items() if path.startswith("image/")) == image
    assert sum(counts.values()) == total
    assert sizes.text_layers == 12 and len(ARCHITECTURES) == len(COUNTS)


def test_the_tree_of_a_vit():
    leaves = flatten(jax.eval_shape(CLIP(VIT).init, jax.random.key(0)))
    block = {f"attn/{name}/kernel": (64, 1, 64) for name in ("query", "key", "value", "out")}
    block["attn/out/kernel"] = (1, 64, 64)
    block |= {f"attn/{name}/bias": (1, 64) for name in ("query", "key", "value")} | {"attn/out/bias": (64,)}
    block |= {f"{norm}/{leaf}": (64,) for norm in ("ln_1", "ln_2") for leaf in ("scale", "bias")}
    block |= {"mlp/fc1/kernel": (64, 256), "mlp/fc1/bias": (256,), "mlp/fc2/kernel": (256, 64), "mlp/fc2/bias": (64,)}
    places = ("image/blocks_0", "image/blocks_1", "text/blocks_0")
    expected = {f"{place}/{leaf}": shape for place in places for leaf, shape in block.items()}
    norms = ("image/ln_pre", "image/ln_post", "text/ln_final")
    expected |= {f"{norm}/{leaf}": (64,) for norm in norms for leaf in ("scale", "bias")}
    expected |= {
        "image/patch_embed/kernel": (8, 8, 3, 64),
        "image/class_embedding": (64,),
        "image/pos_embedding": (5, 64),
        "image/proj/kernel": (64, 4),
        "text/token_embedding/embedding": (20, 64),
        "text/pos_embedding": (6, 64),
        "text/proj/kernel": (64, 4),
        "logit_scale": (),
    }
    assert {path: leaf.shape for path, leaf in leaves.items()} == expected


def test_the_tree_of_a_resnet():
    tree = jax.eval_shape(CLIP(RESNET).init, jax.random.key(0))
    leaves = {path: leaf.shape for path, leaf in flatten(tree["image"]).items()}
    assert leaves["stem/conv1/kernel"] == (3, 3, 3, 2) and leaves["stem/conv3/kernel"] == (3, 3, 2, 4)
    assert leaves["layer4_0/down_conv/kernel"] == (1, 1, 64, 128) and leaves["layer4_0/down_bn/scale"] == (128,)
    assert leaves["layer1_0/conv2/kernel"] == (3, 3, 4, 4) and leaves["layer1_0/conv3/kernel"] == (1, 1, 4, 16)
    pool = {path.removeprefix("attnpool/"): shape for path, shape in leaves.items() if path.startswith("attnpool/")}
    projections = {f"{name}/kernel": (128, 2, 64) for name in ("query", "key", "value")} | {"out/kernel": (2, 64, 4)}
    biases = {f"{name}/bias": (2, 64) for name in ("query", "key", "value")} | {"out/bias": (4,)}
    assert pool == {"pos_embedding": (5, 128)} | projections | biases
    stats = {path.rpartition("/")[0] for path in flatten(tree["batch_stats"])}
    assert stats == {f"image/{path.rpartition('/')[0]}" for path in leaves if path.endswith("scale")}


GOLDEN_VIT = [[2.416147, 1.011348, -1.319831, 0.272506], [-1.052777, 0.248267, -1.295294, 1.437469]]
GOLDEN_TEXT = [
    [2.230111, -0.566296, -1.275654, -1.840932],
    [-3.801556, -3.235838, 0.113369, 0.164503],
    [3.157243, 0.14069, -0.587762, -1.201949],
]
GOLDEN_RESNET = [[-12.017175, -7.128318, 1.120933, 9.629611], [-11.728601, -6.74237, 1.19931, 9.540171]]


def test_golden_features_of_a_vit_and_of_texts(vit, read):
    """Of the original's modules in PyTorch, in float64, with the numbers of `filled`."""
    clip, params, images = vit
    np.testing.assert_allclose(jax.jit(clip.image_features)(params, images), GOLDEN_VIT, atol=1e-5)
    np.testing.assert_allclose(read(TOKENS), GOLDEN_TEXT, atol=1e-5)


def test_golden_features_of_a_resnet(vit):
    clip = CLIP(RESNET)
    features = jax.jit(clip.image_features)(filled(clip), vit[2])
    np.testing.assert_allclose(features, GOLDEN_RESNET, atol=1e-4)


def test_a_place_does_not_see_the_later_ones(read):
    """Ids after the end token change nothing, as long as none is larger; those before it do."""
    features = read(TOKENS)
    changed = TOKENS.copy()
    changed[0, 3:], changed[1, 5], changed[2, 3:] = 11, 18, 3
    np.testing.assert_array_equal(read(changed), features)
    for row, place in ((0, 0), (0, 1), (1, 3)):
        changed = TOKENS.copy()
        changed[row, place] += 1 if place == 3 else -1
        assert np.abs(read(changed) - features).max(1)[row] > 1e-4


def test_a_place_sees_itself_and_all_the_earlier_ones(vit):
    clip, params, _ = vit
    tower = clip.text_tower
    _, seen = jax.jit(lambda t: tower.apply({"params": params["text"]}, t, mutable=["intermediates"]))(TOKENS)
    (probabilities,) = seen["intermediates"]["blocks_0"]["attn"]["probabilities"]
    assert probabilities.shape == (3, 1, 6, 6)
    np.testing.assert_array_equal(np.asarray(probabilities > 0), np.broadcast_to(np.tri(6) > 0, (3, 1, 6, 6)))


def test_the_text_is_read_at_the_first_of_its_largest_ids(vit, read):
    clip, params, _ = vit
    shorter = jax.jit(lambda t: clip.text_features(params, t))(TOKENS[:, :3])  # a row may be cut after its end
    features = read(TOKENS)
    np.testing.assert_allclose(shorter[::2], features[::2], atol=1e-6)
    assert np.abs(shorter[1] - features[1]).max() > 1e-3  # here the end was cut off


def test_attention_maps_and_their_gradients(vit):
    clip, params, images = vit
    direction = np.random.default_rng(1).normal(size=(2, 2, 1, 5, 5)).astype(np.float32)

    @jax.jit
    def run(perturbations):
        def score(perturbations):
            features, maps = clip.image_features_and_attention(params, images, perturbations)
            return features.sum(), (features, maps)

        return jax.value_and_grad(score, has_aux=True)(tuple(perturbations))

    (_, (features, maps)), gradients = run(0 * direction)
    slope = (run(0.004 * direction)[0][0] - run(-0.004 * direction)[0][0]) / 0.008
    np.testing.assert_allclose(features, GOLDEN_VIT, atol=1e-5)
    assert [m.shape for m in maps] == [(2, 1, 5, 5)] * 2
    np.testing.assert_allclose(np.stack(maps).sum(-1), 1, atol=1e-6)
    assert np.stack(maps).min() > 0 and np.abs(maps[0] - maps[1]).max() > 1e-3
    assert np.vdot(np.stack(gradients), direction) == pytest.approx(float(slope), rel=1e-2)
    assert np.abs(gradients[1][:, :, 1:]).max() == 0 < np.abs(gradients[1][:, :, 0]).min()  # read at the class token


def test_attention_maps_cost_nothing_where_they_are_not_asked_for(vit):
    clip, params, images = vit
    plain = jax.make_jaxpr(clip.image_features)(params, images)
    asked = jax.make_jaxpr(clip.image_features_and_attention)(params, images)
    assert len(plain.jaxpr.outvars) == 1 and len(asked.jaxpr.outvars) == 3
    assert len(plain.eqns) == len(asked.eqns)


def operand_types(jaxpr, name):
    """The types that primitives of a name take, in inner programs too."""
    found = set()
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= operand_types(inner, name)
        if equation.primitive.name == name:
            found |= {str(v.aval.dtype) for v in equation.invars}
    return found


@pytest.mark.parametrize("sizes", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_bfloat16_body_keeps_norms_softmax_and_features_in_float32(sizes):
    clip = CLIP(sizes, dtype="bfloat16")
    params = jax.eval_shape(clip.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    programs = [jax.make_jaxpr(clip.image_features)(params, images)]
    if sizes == VIT:
        programs.append(jax.make_jaxpr(clip.text_features)(params, jax.ShapeDtypeStruct((3, 6), jnp.int32)))
        assert "bfloat16" in operand_types(programs[1].jaxpr, "logistic")
    for program in programs:
        assert program.out_avals[0].dtype == jnp.float32
        assert operand_types(program.jaxpr, "exp") == {"float32"}  # softmax
        assert operand_types(program.jaxpr, "rsqrt") == {"float32"}  # norms
        assert "bfloat16" in operand_types(program.jaxpr, "dot_general")


def test_the_record_is_hashable():
    clip = CLIP(VIT, mean=list(MEAN))
    assert clip == CLIP(Sizes(**dataclasses.asdict(VIT))) and hash(clip) == hash(CLIP(VIT))
    assert hash(CLIP(RESNET)) and CLIP(RESNET) != clip
    assert jax.jit(lambda c: c.sizes.context, static_argnums=0)(clip) == 6


def test_preprocessing():
    assert MEAN == (0.48145466, 0.4578275, 0.40821073) and STD == (0.26862954, 0.26130258, 0.27577711)
    grey = jax.jit(CLIP(VIT).preprocess)(np.full((1, 5, 9, 3), 0.5, np.float32))
    assert grey.shape == (1, 16, 16, 3) and grey.dtype == jnp.float32
    expected = (0.5 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(grey, np.broadcast_to(expected, grey.shape), atol=1e-5)
    x = np.random.default_rng(0).uniform(size=(1, 24, 24, 3)).astype(np.float32)
    other = CLIP(VIT, mean=(0.0, 0.0, 0.0), std=(0.5, 0.5, 0.5), interpolation="bicubic_antialias")
    expected = jax.jit(lambda x: 2 * jax.image.resize(x, (1, 16, 16, 3), "cubic"))(x)
    np.testing.assert_allclose(jax.jit(other.preprocess)(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sizes(4, 16, 64, 2, 8, 64, image_heads=3), "image_heads is 3: expected a divisor of the width 64"),
        (lambda: Sizes(4, 20, 64, 2, 8, 64), "image_size is 20: expected a multiple of 8"),
        (lambda: Sizes(4, 48, 4, (1, 1, 1, 1), None, 64), "image_size is 48: expected a multiple of 32"),
        (lambda: Sizes(4, 32, 64, (1, 1, 1, 1), 8, 64), "no patch size for a ResNet"),
        (lambda: Sizes(4, 32, 4, (1, 1, 1), None, 64), "a ResNet tower has four stages"),
        (lambda: CLIP(VIT, activation="quickgelu"), "unknown activation 'quickgelu'.*did you mean 'quick_gelu'"),
        (lambda: CLIP(VIT, interpolation="linear"), "unknown interpolation 'linear'"),
        (lambda: CLIP(VIT, dtype="float16"), "unknown dtype 'float16'.*did you mean 'bfloat16'"),
        (lambda: CLIP(VIT, mean=(0.5,)), "expected three numbers"),
        (lambda: CLIP(VIT, std=(1, 1, 0)), "every number must be positive"),
    ],
)
def test_sizes_that_do_not_fit(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, p, x: c.image_features(p, x[..., :1]), "images have shape 2x8x8x1: CLIP expects BxHxWx3"),
        (lambda c, p, x: c.image_features(p, x.astype(jnp.uint8)), "images are uint8.*divide by 255"),
        (lambda c, p, x: c.image_features(p, x, prompts=Prompts(jnp.zeros((8, 8, 3)))), "prompt is 8x8x3.*16x16x3"),
        (lambda c, p, x: c.image_features(p, x, prompts=Prompts(tokens=jnp.zeros((5, 7)))), "5x7: expected Px64"),
        (lambda c, p, x: c.image_features_and_attention(p, x, [0.0]), "1 perturbations for 2 blocks"),
        (lambda c, p, x: CLIP(RESNET).image_features_and_attention(p, x), "a ResNet tower has no attention blocks"),
        (lambda c, p, x: c.text_features(p, jnp.zeros((1, 7), jnp.int32)), "texts have 7 tokens: .* at most 6"),
        (
            lambda c, p, x: c.text_features(p, jnp.zeros((1, 6))),
            r"texts are float32\[1, 6\]: expected rows of token ids",
        ),
    ],
)
def test_input_that_does_not_fit(vit, call, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: call(*vit))
