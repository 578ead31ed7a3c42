"""A ViT that sees some of its patches, and the relevance of patches as it is computed on CLIP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions.gradients import logit_score
from jrobust.attributions.relevance import attention_relevance, relevance_matrix, unit_peak
from jrobust.errors import InputError
from jrobust.models.clip import CLIP, Prompts, Sizes, similarity

TEXT = {"text_width": 64, "text_layers": 1, "vocabulary": 20, "context": 6}
VIT = CLIP(Sizes(4, 16, 64, 2, 4, **TEXT, image_heads=4))
RESNET = CLIP(Sizes(4, 32, 2, (1, 1, 1, 1), None, **TEXT))


def numbers(clip):
    """Parameters away from their start, with enough contrast that patches differ."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(clip.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def vit():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.uniform(size=(3, 16, 16, 3)), jnp.float32)
    texts = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    return numbers(VIT), images, texts, jnp.asarray([4, 0, 2])


@pytest.fixture(scope="module")
def found(vit):
    """Features and maps of `attention_relevance`."""
    return jax.jit(lambda params: with_relevance(VIT, params, *vit[1:]))(vit[0])


def with_relevance(clip, params, images, texts, labels):
    score = logit_score(lambda f: similarity(f, texts, np.log(100.0)), labels)
    network = lambda factors: clip.image_features(params, images, factors=factors)
    return attention_relevance(network, clip.no_factors(len(images)), score, clip.patches())


def test_relevance_is_the_recursion_over_stored_attention(vit, found):
    """Against its definition: gradients with respect to what is added to probabilities, all rows of the matrix."""
    params, images, texts, labels = vit

    @jax.jit
    def reference(params):
        def score(shifts):
            features, attention = VIT.image_features_and_attention(params, images, shifts)
            logits = similarity(features, texts, np.log(100.0))
            return jnp.take_along_axis(logits, labels[:, None], 1).sum(), (features, attention)

        zeros = VIT.no_factors(3)
        gradients, (features, attention) = jax.grad(score, has_aux=True)(zeros)
        matrix = relevance_matrix([g * p for g, p in zip(gradients, attention, strict=True)])
        return features, unit_peak(matrix[:, 0, 1:]).reshape(3, 4, 4)

    (features, cam), (expected_features, expected) = found, reference(params)
    np.testing.assert_allclose(features, expected_features, rtol=1e-5)
    np.testing.assert_allclose(cam, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cam.max((1, 2)), 1, atol=1e-6)
    assert cam.min() >= 0 and (cam > 0.3).mean() < 0.9 and cam.std() > 0.05


def cost(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_relevance_costs_one_backward_pass_beside_the_training_of_the_same_images():
    """In forward passes: training is 3, one backward pass to the activations 1; the forward pass is shared."""
    clip = CLIP(Sizes(4, 32, 64, 2, 4, **TEXT))
    params = jax.eval_shape(clip.init, jax.random.key(0))
    images, texts, labels = (jnp.zeros(s, d) for s, d in (((2, 32, 32, 3), "f4"), ((5, 4), "f4"), ((2,), "i4")))

    def training(params, relevance):
        def loss(params):
            if relevance:
                features, cam = with_relevance(clip, params, images, texts, labels)
            else:
                features, cam = clip.image_features(params, images), 0.0
            return jax.nn.logsumexp(similarity(features, texts), axis=-1).mean(), cam

        return jax.grad(loss, has_aux=True)(params)

    forward = cost(lambda p: clip.image_features(p, images), params)
    plain, together = (cost(lambda p, on=on: training(p, on), params) for on in (False, True))
    assert 2.8 < plain / forward < 3.2
    assert 0.9 < (together - plain) / forward < 1.15


def test_recomputation_keeps_no_attention_and_changes_no_number(vit, found):
    params, images, texts, labels = vit
    other = dataclasses.replace(VIT, recompute=True)

    def kept(clip, factors):
        """Shapes of what waits for the backward pass."""
        run = lambda p: jax.vjp(lambda e, p: clip.image_features(p, images, factors=factors(e)), 1.0, p)[1]
        return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(run, params))]

    for clip, expected in ((VIT, True), (other, False)):
        assert ((3, 4, 17, 17) in kept(clip, lambda e: None)) == expected
    cam = jax.jit(lambda p: with_relevance(other, p, images, texts, labels)[1])(params)
    np.testing.assert_allclose(cam, found[1], rtol=1e-4, atol=1e-6)


def test_dropped_patches(vit):
    """A mask of what attention looks at and a shorter sequence give the same features, which know nothing of them."""
    params, images, _, _ = vit
    rng = np.random.default_rng(2)
    places = np.stack([rng.permutation(16)[:6] for _ in range(3)])
    keep = np.zeros((3, 16), bool)
    np.put_along_axis(keep, places, True, axis=1)
    prompts = Prompts(tokens=jnp.asarray(rng.normal(size=(2, 64)), jnp.float32))
    run = jax.jit(lambda x, keep, tokens: VIT.image_features(params, x, prompts=Prompts(tokens=tokens), keep=keep))
    masked, shorter = (run(images, jnp.asarray(k), prompts.tokens) for k in (keep, places))
    np.testing.assert_allclose(masked, shorter, rtol=1e-5, atol=1e-5)
    pixels = keep.reshape(3, 4, 4).repeat(4, 1).repeat(4, 2)[..., None]
    np.testing.assert_array_equal(run(jnp.where(pixels, images, 0.5), keep, prompts.tokens), masked)
    assert np.abs(run(jnp.where(pixels, 0.5, images), keep, prompts.tokens) - masked).max() > 1e-2
    for other in (run(images, ~keep, prompts.tokens), run(images, keep, 0 * prompts.tokens)):
        assert np.abs(other - masked).max(1).min() > 1e-2


def test_gradients_through_dropped_patches_are_finite(vit):
    params, images, _, _ = vit
    keep = jnp.zeros((3, 16), bool).at[1:, 3].set(True)  # the first image has its class token alone
    gradient = jax.jit(jax.grad(lambda x: VIT.image_features(params, x, keep=keep).sum()))(images)
    seen = np.abs(gradient).sum(-1).reshape(3, 4, 4, 4, 4).max((2, 4)).reshape(3, 16) > 0
    np.testing.assert_array_equal(seen, keep)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, x: VIT.image_features(p, x, keep=jnp.ones((3, 17), bool)),
            r"keep is bool\[3, 17\]: .*bool\[3, 16\]",
        ),
        (lambda p, x: VIT.image_features(p, x, keep=jnp.ones((1, 4), int)), r"keep is int32\[1, 4\]: .*int\[3, K\]"),
        (lambda p, x: VIT.image_features(p, x, keep=jnp.ones((3, 16))), r"keep is float32\[3, 16\]"),
        (lambda p, x: VIT.image_features(p, x, factors=[0.0]), "1 factors for 2 blocks: expected one a block"),
        (lambda p, x: RESNET.image_features(p, x, keep=jnp.ones((3, 1), bool)), "a ResNet tower has no attention"),
        (lambda p, x: RESNET.image_features(p, x, factors=[0.0]), "a ResNet tower has no attention"),
        (lambda p, x: RESNET.no_factors(3), "a ResNet tower has no attention blocks and patches: take a ViT"),
    ],
)
def test_what_does_not_fit(vit, call, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: call(*vit[:2]))
