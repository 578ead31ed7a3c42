"""Where a vision transformer finds the evidence of a score: attention times its gradient, carried through all blocks.

Chefer et al., "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
ICCV 2021; with all blocks and on CLIP in Xiao et al., "Masked Images Are Counterfactual Samples for Robust
Fine-tuning", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jrobust.attributions.gradients import ScoreFn, wide

# Numbers e, one array float[B, heads, T, T] a block -> features float[B, E] where the block's attention probabilities
# are P (1 + e); token 0 is the class token, from which the features are read, and the image's patches follow.
Network = Callable[[tuple[jax.Array, ...]], jax.Array]


def attention_relevance(
    network: Network, zeros: tuple[jax.Array, ...], score: ScoreFn, grid: int
) -> tuple[jax.Array, jax.Array]:
    """Return a network's features, and the patches on which a score of them rests.

        Abar_l = (1/H) sum_h max(0, G_lh P_lh),   G_lh = d s / d P_lh
        R_0 = I,   R_l = R_{l-1} + Abar_l R_{l-1},   cam = R_L[class token, patches],   cam / (max cam + 1e-8)

    G P is the derivative with respect to a factor 1 + e of P at e = 0, so one backward pass to the activations is all
    that is paid beside the features' own forward pass, and neither P nor G is kept for it; see `relevance_row`. The
    features may be differentiated, and share that forward pass; the map is a constant. The map is not invariant to the
    score's scale, for blocks are multiplied: keep CLIP's factor 100.

    Args:
      network: in inference mode, in which no example sees another.
      zeros: what it takes, all 0, first block first.
      score: features -> s, one number an example, such as `logit_score(head, labels)`.
      grid: patches on a side; what follows them among the tokens is left out.

    Returns:
      Features float[B, E], and float32[B, grid, grid] (or wider) in [0, 1], rows from the top.
    """
    features, pull = jax.vjp(network, zeros)
    cotangent = jax.grad(lambda f: jnp.sum(score(f)))(jax.lax.stop_gradient(features))
    (products,) = pull(jax.lax.stop_gradient(cotangent))
    row = relevance_row([jax.lax.stop_gradient(product) for product in products])
    return features, unit_peak(row[:, 1 : 1 + grid**2]).reshape(-1, grid, grid)


def relevance_row(products: Sequence[jax.Array]) -> jax.Array:
    """Return the first row of `relevance_matrix`, float32[B, T], without the others.

        r = e_0,   r <- r + r Abar_l   for l = L, ..., 1

    This is the order in which a backward pass meets the blocks: a block's `products` are used up where they arise.
    """
    batch, _, tokens, _ = products[0].shape
    row = jnp.zeros((batch, tokens), wide(products[0]).dtype).at[:, 0].set(1)
    for product in reversed(products):
        row = row + jnp.einsum("bq,bqk->bk", row, head_mean(product), precision=jax.lax.Precision.HIGHEST)
    return row


def relevance_matrix(products: Sequence[jax.Array]) -> jax.Array:
    """Return R_L float32[B, T, T] of `attention_relevance` from G P, float[B, heads, T, T] a block, first block first.

    The definition, with which `relevance_row` can be compared.
    """
    matrix = jnp.eye(products[0].shape[-1], dtype=wide(products[0]).dtype)
    for product in products:
        matrix = matrix + jnp.matmul(head_mean(product), matrix, precision=jax.lax.Precision.HIGHEST)
    return matrix


def head_mean(product: jax.Array) -> jax.Array:
    """Return `Abar = (1/H) sum_h max(0, G_h P_h)`, float32[B, T, T], of G P, float[B, heads, T, T]."""
    return jnp.mean(jax.nn.relu(wide(product)), axis=1)


def unit_peak(maps: jax.Array) -> jax.Array:
    """Return non-negative maps float[B, N] divided by their largest value plus 1e-8; zeros stay zeros."""
    return maps / (jnp.max(maps, axis=-1, keepdims=True) + 1e-8)
