"""Images whose patches are masked, chosen by a relevance map or by chance, and refilled from other images.

Xiao et al., "Masked Images Are Counterfactual Samples for Robust Fine-tuning", CVPR 2023. A mask is bool[B, g, g] over
the g x g patches of an image, True where a patch is masked, rows from the top; shapes are static whatever is masked.
Random keys are one an image (`jrobust.keys.per_example`), so that an image's draw does not depend on its batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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


def single_fill(
    key: jax.Array, images: jax.Array, mask: jax.Array, *, groups: int = 1, axis_name: str | None = None
) -> jax.Array:
    """Return images whose masked patches come from one other image each, at the same place.

        x_cf,i = where(mask_i, x_pi(i), x_i),   pi a random permutation of the batch; pi(i) = i may happen

    Args:
      key: one key, the same on all devices.
      images: [B, H, W, C] of any type, H and W multiples of g; donors are taken as they are.
      mask: bool[B, g, g].
      groups: the batch is this many groups one behind the other, and donors come from an image's own.
      axis_name: of the devices among which the batch is divided, of which each is given its part. The result does not
        depend on their number. Images are sent to the neighbours with which a device shares a group: with one group a
        device, or several, none are.

    Raises:
      InputError: a patch would be no whole number of pixels, or the groups would not be equal.
    """
    pool = _pool(images, groups, axis_name)
    donors = jax.vmap(lambda k: jax.random.permutation(k, pool.size))(jax.random.split(key, groups))
    donors = (donors + pool.size * jnp.arange(groups)[:, None]).reshape(-1)  # in the whole batch
    own = jax.lax.dynamic_slice_in_dim(donors, pool.first + pool.own, len(images)) - pool.first
    return refill(images, mask, own, pool.images)


def multi_fill(
    keys: jax.Array, images: jax.Array, mask: jax.Array, *, groups: int = 1, axis_name: str | None = None
) -> jax.Array:
    """Return images each of whose masked patches comes from an image of its own draw, never itself, at the same place.

        donor(i, p) = (i + shift) mod B,   shift uniform in 1 .. B - 1 for each image i and patch p

    Args:
      keys: typed keys, shape [B].
      images, mask, groups, axis_name: as in `single_fill`; with groups, B is the size of one.

    Raises:
      InputError: as `single_fill`; or a group is one image.
    """
    pool = _pool(images, groups, axis_name)
    if pool.size < 2:
        raise InputError("multi-fill takes patches from other images of a group: expected at least 2, found 1")
    shifts = jax.vmap(lambda key: jax.random.randint(key, mask.shape[1:], 1, pool.size))(keys)
    places = (pool.own + jnp.arange(len(images)))[:, None, None]
    donors = places - places % pool.size + (places + shifts) % pool.size
    return refill(images, mask, donors, pool.images)


def refill(images: jax.Array, mask: jax.Array, donors: jax.Array, pool: jax.Array | None = None) -> jax.Array:
    """Return images whose masked patches are those of `donors` at the same place.

    Args:
      images, mask: as in `single_fill`.
      donors: int[B], one image for all patches, or int[B, g, g], one for each; positions in the pool.
      pool: images; by default those that are refilled.

    Raises:
      InputError: as `single_fill`.
    """
    batch, height, width, channels = images.shape
    rows, columns = mask.shape[1:]
    cells = as_patches(images, (rows, columns))
    others = cells if pool is None else as_patches(pool, (rows, columns))
    others = others[donors] if donors.ndim == 1 else others[donors, jnp.arange(rows)[:, None], jnp.arange(columns)]
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


class _Pool(NamedTuple):
    """What the donors of a device's images are among.

    Attributes:
      images: whole groups.
      first: the place of the first of them in the batch.
      own: the place of the device's first image among them.
      size: of a group.
    """

    images: jax.Array
    first: jax.Array | int
    own: jax.Array | int
    size: int


def _pool(images: jax.Array, groups: int, axis_name: str | None) -> _Pool:
    count, devices = len(images), 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if count * devices % groups:
        raise InputError(f"a batch of {count * devices} images is not {groups} equal groups")
    size = count * devices // groups
    if axis_name is None:
        return _Pool(images, 0, 0, size)
    together = devices // math.gcd(devices, groups)  # neighbours that have whole groups
    device = jax.lax.axis_index(axis_name)
    if together > 1:
        neighbours = [list(range(first, first + together)) for first in range(0, devices, together)]
        images = jax.lax.all_gather(images, axis_name, axis_index_groups=neighbours, tiled=True)
    place = device % together
    return _Pool(images, (device - place) * count, place * count, size)
