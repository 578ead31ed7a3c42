"""Images whose patches are masked, chosen by a relevance map or by chance, and refilled from other images.

Xiao et al., "Masked Images Are Counterfactual Samples for Robust Fine-tuning", CVPR 2023. A mask is bool[B, g, g] over
the g x g patches of an image, True where a patch is masked, rows from the top; shapes are static whatever is masked.
Random keys are one an image (`jrobust.keys.per_example`), so that an image's draw does not depend on its batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jrobust.errors import InputError


def object_mask(maps: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Return where maps float[B, g, g] in [0, 1] exceed `threshold`: the object, not empty where their peak is 1."""
    return maps > threshold


def context_mask(maps: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Return the complement of `object_mask`: all patches of a map that is zero everywhere."""
    return ~object_mask(maps, threshold)


def random_mask(keys: jax.Array, grid: int, rate: jax.Array | float) -> jax.Array:
    """Return bool[B, grid, grid]: each patch by itself with probability `rate`. `keys` are typed keys, shape [B]."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, rate, (grid, grid)))(keys)


def random_places(keys: jax.Array, patches: int, rate: float) -> jax.Array:
    """Return int32[B, K], K = int(N (1 - rate)) of N `patches` an image drawn without repetition: those that are kept.

    The counterpart of `random_mask` where masked patches are dropped: the number is fixed, 12 of 49 at a rate of 0.75.

    Raises:
      InputError: the rate is not in [0, 1].
    """
    if not 0 <= rate <= 1:
        raise InputError(f"the masking rate is {rate:g}: expected a number in [0, 1]")
    count = int(patches * (1 - rate))
    return jax.vmap(lambda key: jax.random.permutation(key, patches)[:count])(keys).astype(jnp.int32)


def kept(mask: jax.Array) -> jax.Array:
    """Return bool[B, g^2], the patches of a mask that stay, in the order of reading: what a network is to see."""
    return ~mask.reshape(mask.shape[0], -1)


def single_fill(key: jax.Array, images: jax.Array, mask: jax.Array, *, groups: int = 1) -> jax.Array:
    """Return images whose masked patches come from one other image each, at the same place.

        x_cf,i = where(mask_i, x_pi(i), x_i),   pi a random permutation of the batch; pi(i) = i may happen

    Args:
      key: one key. Where each device has its own `images`, fold the device's number into it.
      images: [B, H, W, C] of any type, H and W multiples of g; donors are taken as they are.
      mask: bool[B, g, g].
      groups: the batch is this many groups one behind the other, and donors come from an image's own: with one group a
        device nothing has to be sent.

    Raises:
      InputError: a patch would be no whole number of pixels, or the groups would not be equal.
    """
    size = _group_size(images, groups)
    donors = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, groups))
    return refill(images, mask, donors.reshape(-1), groups=groups)


def multi_fill(keys: jax.Array, images: jax.Array, mask: jax.Array, *, groups: int = 1) -> jax.Array:
    """Return images each of whose masked patches comes from an image of its own draw, never itself, at the same place.

        donor(i, p) = (i + shift) mod B,   shift uniform in 1 .. B - 1 for each image i and patch p

    Args:
      keys: typed keys, shape [B].
      images, mask, groups: as in `single_fill`; with groups, B is the size of one.

    Raises:
      InputError: as `single_fill`; or a group is one image.
    """
    size = _group_size(images, groups)
    if size < 2:
        raise InputError("multi-fill takes patches from other images of a device's batch: expected at least 2, found 1")
    shifts = jax.vmap(lambda key: jax.random.randint(key, mask.shape[1:], 1, size))(keys)
    return refill(images, mask, (jnp.arange(len(images))[:, None, None] + shifts) % size, groups=groups)


def refill(images: jax.Array, mask: jax.Array, donors: jax.Array, *, groups: int = 1) -> jax.Array:
    """Return images whose masked patches are those of `donors` at the same place.

    Args:
      images, mask, groups: as in `single_fill`.
      donors: int[B], one image for all patches, or int[B, g, g], one for each; positions in the image's group.

    Raises:
      InputError: as `single_fill`.
    """
    _group_size(images, groups)
    if groups > 1:
        parts = [array.reshape(groups, -1, *array.shape[1:]) for array in (images, mask, donors)]
        return jax.vmap(refill)(*parts).reshape(images.shape)
    batch, height, width, channels = images.shape
    rows, columns = mask.shape[1:]
    cells = as_patches(images, (rows, columns))
    others = cells[donors] if donors.ndim == 1 else cells[donors, jnp.arange(rows)[:, None], jnp.arange(columns)]
    filled = jnp.where(mask[..., None, None, None], others, cells)
    return filled.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


def as_patches(images: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Return images [B, H, W, C] as patches [B, rows, columns, H / rows, W / columns, C].

    Raises:
      InputError: a patch would be no whole number of pixels.
    """
    (batch, height, width, channels), (rows, columns) = images.shape, grid
    if height % rows or width % columns:
        raise InputError(
            f"images of {height}x{width} pixels have no {rows}x{columns} patches of whole pixels: take a size that"
            f" {rows} and {columns} divide"
        )
    cells = images.reshape(batch, rows, height // rows, columns, width // columns, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5)


def _group_size(images: jax.Array, groups: int) -> int:
    if len(images) % groups:
        raise InputError(f"a batch of {len(images)} images is not {groups} equal groups")
    return len(images) // groups
