"""CLIP whose image tower is one matrix a patch, so that relevance maps and features can be written down in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.models.clip import CLIP, Sizes
from jrobust.models.clip.linear_head import LinearHead
from tests.methods.flat_clip import SCALE, unit

E, SIDE, PATCH, CLASSES = 4, 6, 2, 3
GRID = SIDE // PATCH
PATCHES = GRID**2
SHAPE = (SIDE, SIDE, 3)
SIZES = Sizes(E, SIDE, E, 1, PATCH, E, text_layers=1, vocabulary=9, context=3, image_heads=1, text_heads=1)


@dataclasses.dataclass(frozen=True)
class Patched(CLIP):
    """f(x) = sum over the seen patches p of (1 + e_p) x_p A_p, e_p the factor of what the class token sees of p."""

    def init(self, key):
        shape = (PATCHES, PATCH * PATCH * 3, self.sizes.embed_dim)
        whole = {"image": {"kernel": jax.random.normal(key, shape, self.dtype)}, "text": {}}
        return whole | {"logit_scale": jnp.log(jnp.asarray(SCALE, self.dtype))}

    def image_features(self, params, images, *, keep=None, factors=None):
        share = jnp.ones((len(images), PATCHES)) if factors is None else 1 + factors[0][:, 0, 0, 1:]
        if keep is not None:
            seen = keep if keep.dtype == bool else jax.nn.one_hot(keep, PATCHES).sum(1)
            share = share * seen
        return jnp.einsum("bp,bpx,pxe->be", share, cells(images), params["image"]["kernel"])


def model(**fields):
    """The classifier, in float64."""
    return LinearHead(Patched(SIZES, dtype="float64"), CLASSES, SHAPE, **fields)


def cells(images):
    """Return patches [B, N, pixels] in the order of reading."""
    parts = images.reshape(len(images), GRID, PATCH, GRID, PATCH, 3)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), PATCHES, -1)


def features(params, images, keep=None):
    """Return f(x), in NumPy."""
    each = np.einsum("bpx,pxe->bpe", cells(np.asarray(images)), np.asarray(params["image"]["kernel"]))
    return (each if keep is None else each * np.asarray(keep)[..., None]).sum(1)


def logits(params, images):
    """Return z = A f / |f| + b, in NumPy."""
    head = params["head"]
    return unit(features(params, images)) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])


def maps(params, images, labels):
    """Return the relevance of each patch for the label's logit, [B, N], largest 1: its part of the logit, if positive.

    One block and one head: the class token's row of G P, by the chain rule through f / |f|.
    """
    each = np.einsum("bpx,pxe->bpe", cells(np.asarray(images)), np.asarray(params["image"]["kernel"]))
    f = each.sum(1)
    slope = np.asarray(params["head"]["kernel"]).T[np.asarray(labels)]
    slope = (slope - (slope * unit(f)).sum(1, keepdims=True) * unit(f)) / np.linalg.norm(f, axis=1, keepdims=True)
    found = np.maximum(np.einsum("bpe,be->bp", each, slope), 0)
    return found / (found.max(1, keepdims=True) + 1e-8)


def batch(count=8, seed=0):
    """A batch as host arrays; no two images share a pixel's value."""
    rng = np.random.default_rng(seed)
    index = rng.permutation(50)[:count].astype(np.int32)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    return {"image": rng.uniform(size=(count, *SHAPE)), "label": labels, "index": index}
