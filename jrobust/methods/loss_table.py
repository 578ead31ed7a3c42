"""The running loss of every training image under two networks: the memory of LfF."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossTable:
    """One row a training image; the same on every device.

    Attributes:
      debiased, biased: float32[N], exponential moving averages of the image's cross-entropy; 0 where never seen.
      label: int32[N], the class of the image, -1 where never seen.
    """

    debiased: jax.Array
    biased: jax.Array
    label: jax.Array

    @classmethod
    def empty(cls, size: int) -> LossTable:
        """Return the table of `size` images that were never seen."""
        return cls(jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32), jnp.full(size, -1, jnp.int32))

    def update(
        self, index: jax.Array, labels: jax.Array, debiased: jax.Array, biased: jax.Array, alpha: float
    ) -> LossTable:
        """Return the table after the losses float[B] of the images `index` int32[B], no index twice.

            e_i <- loss_i at the first visit, alpha e_i + (1 - alpha) loss_i later

        An index of N, beyond the table, stands for no image.
        """
        seen = self.label.at[index].get(mode="fill", fill_value=-1) >= 0

        def averaged(old: jax.Array, losses: jax.Array) -> jax.Array:
            losses = losses.astype(jnp.float32)
            mixed = alpha * old.at[index].get(mode="fill", fill_value=0) + (1 - alpha) * losses
            return old.at[index].set(jnp.where(seen, mixed, losses), mode="drop")

        label = self.label.at[index].set(labels.astype(jnp.int32), mode="drop")
        return LossTable(averaged(self.debiased, debiased), averaged(self.biased, biased), label)

    def difficulty(self, index: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
        """Return the weight W of the images `index`: float32[B] in [0, 1], near 1 where the biased network fails.

            W_i = b_i / (b_i + d_i + 1e-8),   b_i = biased_i / max_{j: y_j = y_i} biased_j,   d_i likewise

        The maximum is over all images of the class that were ever seen, not over the batch.
        """
        classes = jnp.where(self.label < 0, num_classes, self.label)  # the never seen are a class of their own

        def relative(losses: jax.Array) -> jax.Array:
            highest = jax.ops.segment_max(losses, classes, num_classes + 1)
            highest = jnp.maximum(highest, jnp.finfo(jnp.float32).tiny)
            return losses.at[index].get(mode="fill", fill_value=0) / highest[labels]

        return relative_difficulty(relative(self.biased), relative(self.debiased))


def relative_difficulty(biased: jax.Array, debiased: jax.Array) -> jax.Array:
    """Return biased / (biased + debiased + 1e-8): how much harder the biased network finds an image, in [0, 1]."""
    return biased / (biased + debiased + 1e-8)
