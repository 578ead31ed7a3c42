"""Feature separation and recalibration (FSR): a module that may follow any block of a network.

Kim et al., "Feature Separation and Recalibration for Adversarial Robustness", CVPR 2023. "The released code" is the
authors' PyTorch code; where it and the paper leave something open, the docstring says what was chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.errors import InputError, unknown
from jrobust.models.activation import activation
from jrobust.models.layers import DType, Initializer, at_least_float32, conv, he_fan_out, norm, pool, torch_default

EPSILON = 1e-8  # the released code's guard of its logarithms and of the temperature
MASK_MODES = ("mean", "sample")
FIRST_NUMBER = 1000  # of the modules' draws, above the numbers of the dropout layers
CHOICES = {
    "mask": ("gumbel", "binary"),
    "separation": ("learned", "none", "greedy", "random"),
    "noise": ("two_gumbel", "logistic"),
}


@dataclasses.dataclass(frozen=True)
class Separation:
    """Where the modules stand and how they separate; the defaults are the paper's method.

    Attributes:
      positions: the blocks that a module follows.
      hidden: width of the separation and the recalibration net.
      tau: temperature of the Gumbel mask.
      mask: "gumbel" is soft; "binary" is `1[sigma(r) >= 1/2]` in both mask modes.
      straight_through: let the binary mask pass the gradient of sigma(r). False takes the step function at its word, so
        that the separation net learns nothing through the mask; the paper leaves this open.
      separation: "learned" by a separation net; "none" takes every activation for non-robust, `m = 0`; "greedy" the
        smallest activations of each example; "random" draws `m ~ Bernoulli(1 - recalibrated_fraction)`.
      recalibrated_fraction: share of `m = 0` in "greedy" and "random"; the paper leaves it open.
      noise: "two_gumbel" draws two uniforms an element as the released code; "logistic" one, of the same law (the
        difference of two Gumbel variables is logistic) but for the clipped tails.

    Raises:
      InputError: a value out of range.
    """

    positions: tuple[str, ...] = ("block4",)
    hidden: int = 64
    tau: float = 0.1
    mask: Literal["gumbel", "binary"] = "gumbel"
    straight_through: bool = False
    separation: Literal["learned", "none", "greedy", "random"] = "learned"
    recalibrated_fraction: float = 0.5
    noise: Literal["two_gumbel", "logistic"] = "two_gumbel"

    def __post_init__(self) -> None:
        positions = (self.positions,) if isinstance(self.positions, str) else tuple(self.positions)
        object.__setattr__(self, "positions", positions)
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise unknown(f"model.fsr.{field}", getattr(self, field), allowed)
        if not positions or len(set(positions)) < len(positions):
            raise InputError(f"model.fsr.positions is {positions}: expected names of blocks, each once")
        if self.hidden < 1:
            raise InputError(f"model.fsr.hidden is {self.hidden}: expected a positive whole number")
        if not self.tau > 0:
            raise InputError(f"model.fsr.tau is {self.tau}: expected a positive temperature, 0.1 in the paper")
        if not 0 <= self.recalibrated_fraction <= 1:
            raise InputError(
                f"model.fsr.recalibrated_fraction is {self.recalibrated_fraction}: expected a share between 0 and 1"
            )
        if self.straight_through and self.mask != "binary":
            raise InputError("model.fsr.straight_through is for the binary mask: set model.fsr.mask to binary too")

    def check_positions(self, blocks: Sequence[str]) -> None:
        """Raise InputError for a position that is not one of a network's blocks."""
        for position in self.positions:
            if position not in blocks:
                raise unknown("position of the FSR module (model.fsr.positions)", position, blocks)


class Auxiliary(NamedTuple):
    """What a module gives for the losses: logits of its one auxiliary head A on pooled features, and its mask."""

    robust: jax.Array  # float32[B, K]: A(mean(f+))
    non_robust: jax.Array  # float32[B, K]: A(mean(f-))
    recalibrated: jax.Array  # float32[B, K]: A(mean(f~-))
    mask: jax.Array  # float32[B, H, W, C] in [0, 1]


def gumbel_mask(r: jax.Array, tau: float, noise: jax.Array | float = 0.0) -> jax.Array:
    """Return the soft mask of robustness scores `r`, of any shape, in (0, 1).

        m = exp((l1 + g1) / t) / (exp((l1 + g1) / t) + exp((l0 + g0) / t)) = sigma((l1 - l0 + g1 - g0) / t)
        l1 = log(p + e),   l0 = log(1 - p + e),   p = sigma(r),   t = tau + e,   e = 1e-8

    `noise` is `g1 - g0`; without it m is close to sigma(r / tau). `l1 - l0` is r, but for |r| above 18, where it
    saturates.
    """
    score = jnp.log(jax.nn.sigmoid(r) + EPSILON) - jnp.log(jax.nn.sigmoid(-r) + EPSILON)
    return jax.nn.sigmoid((score + noise) / (tau + EPSILON))


def gumbel_noise(u1: jax.Array, u0: jax.Array) -> jax.Array:
    """Return `g(u1) - g(u0)` for uniforms in [0, 1), where `g(u) = -log(-log(u + e) + e)` and e = 1e-8."""
    return jnp.log(-jnp.log(u0 + EPSILON) + EPSILON) - jnp.log(-jnp.log(u1 + EPSILON) + EPSILON)


def logistic_noise(u: jax.Array) -> jax.Array:
    """Return `log(u + e) - log(1 - u + e)` for uniforms in [0, 1), e = 1e-8: the law of `g1 - g0` from one draw."""
    return jnp.log(u + EPSILON) - jnp.log(1 - u + EPSILON)


def uniforms(keys: jax.Array | None, number: int, shape: tuple[int, ...], dtype: DType) -> jax.Array:
    """Return float[B, *shape] in [0, 1), each example's from `fold_in(keys[i], number)`.

    Raises:
      ValueError: there is no key, or not one per example.
    """
    if keys is None or keys.ndim != 1 or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError("mask_mode='sample' needs `keys`, one typed PRNG key per example, shape [B]")
    flat = (math.prod(shape),)  # the same numbers as for `shape`; XLA takes ten times longer to compile those on CPU
    drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number), flat, dtype))(keys)
    return drawn.reshape(keys.shape[0], *shape)


class ConvNet(nn.Module):
    """The separation and the recalibration net: conv 3x3, BN, activation, conv 3x3, BN, activation, conv 3x3."""

    hidden: int
    dtype: DType
    axis_name: str | None
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None) -> jax.Array:
        """Map float[B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        for i in range(2):
            x = conv(self.hidden, 3, dtype=self.dtype, init=self.kernel_init, name=f"conv{i}")(x)
            x = activation(norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i}")(x), beta)
        return conv(channels, 3, dtype=self.dtype, init=self.kernel_init, name="conv2")(x)


class FSR(nn.Module):
    """Separate a feature map by a mask, recalibrate its non-robust part, and put both together again.

        m = mask(S(f)),   f+ = m f,   f- = (1 - m) f,   f~- = f- + (1 - m) R(f-),   f~ = f+ + f~-     (elementwise)

    computed as `f~ = f + (1 - m) R((1 - m) f)`. S and R are `ConvNet`s, named sep and rec; the auxiliary head `aux`
    sees the means over H and W of f+, f- and f~- in one call. Where nobody uses its logits, as in an attack, they are
    dead code. From S(f) to the mask everything is in at least float32, whatever the compute type: division by
    tau = 0.1 multiplies errors by ten.
    """

    num_classes: int
    settings: Separation = Separation()
    dtype: DType = "float32"
    axis_name: str | None = None
    kernel_init: Initializer = he_fan_out
    head_init: Initializer = torch_default
    bias_init: Callable[[int], Initializer] | None = None  # of the fan-in; None starts at 0

    @nn.compact
    def __call__(
        self,
        f: jax.Array,
        *,
        train: bool,
        mask_mode: str | None,
        beta: float | None = None,
        keys: jax.Array | None = None,
        number: int = 0,
    ) -> tuple[jax.Array, Auxiliary]:
        """Return f~, of the shape and dtype of f, and the auxiliary outputs.

        Args:
          f: float[B, H, W, C], of any size.
          train: batch statistics in S and R; independent of `mask_mode`.
          mask_mode: "mean" is deterministic, "sample" draws noise from `keys`. There is no default: a defence that is
            random in evaluation by oversight is not what was trained.
          beta: as for every network; S and R are on its path too.
          keys: one typed PRNG key per example, shape [B].
          number: the module's number in its network, so that no two modules share draws.

        Raises:
          ValueError: no mask mode, or noise without keys.
        """
        if mask_mode not in MASK_MODES:
            raise ValueError(
                f"mask_mode is required: 'mean' (deterministic) or 'sample' (noise from `keys`), found {mask_mode!r}"
            )
        wide = f.astype(at_least_float32(f.dtype))
        net = (self.settings.hidden, self.dtype, self.axis_name, self.kernel_init)
        if self.settings.separation == "learned":
            scores = ConvNet(*net, name="sep")(f, train, beta).astype(wide.dtype)
            mask = self._learned(scores, mask_mode, keys, number)
        else:
            mask = self._fixed(wide, mask_mode, keys, number)
        non_robust = (1 - mask) * wide
        update = (1 - mask) * ConvNet(*net, name="rec")(non_robust.astype(f.dtype), train, beta).astype(wide.dtype)

        # mean(f-) = mean(f) - mean(f+) and mean(f~-) = mean(f-) + mean(update): no map is made for the head alone.
        robust = pool(mask * wide)
        rest = pool(wide) - robust
        bias_init = self.bias_init(f.shape[-1]) if self.bias_init else nn.initializers.zeros_init()
        aux = nn.Dense(self.num_classes, True, wide.dtype, wide.dtype, None, self.head_init, bias_init, name="aux")
        plus, minus, recalibrated = jnp.split(aux(jnp.concatenate([robust, rest, rest + pool(update)])), 3)
        return (wide + update).astype(f.dtype), Auxiliary(plus, minus, recalibrated, mask)

    def _learned(self, scores: jax.Array, mask_mode: str, keys: jax.Array | None, number: int) -> jax.Array:
        """Return the mask of the scores r = S(f)."""
        if self.settings.mask == "binary":
            hard = (scores >= 0).astype(scores.dtype)  # sigma(r) >= 1/2
            soft = jax.nn.sigmoid(scores)
            return hard + (soft - jax.lax.stop_gradient(soft)) if self.settings.straight_through else hard
        if mask_mode == "mean":
            return gumbel_mask(scores, self.settings.tau)
        shape = scores.shape[1:]
        if self.settings.noise == "logistic":
            return gumbel_mask(scores, self.settings.tau, logistic_noise(uniforms(keys, number, shape, scores.dtype)))
        u = uniforms(keys, number, (2, *shape), scores.dtype)
        return gumbel_mask(scores, self.settings.tau, gumbel_noise(u[:, 0], u[:, 1]))

    def _fixed(self, f: jax.Array, mask_mode: str, keys: jax.Array | None, number: int) -> jax.Array:
        """Return the mask of a separation that nothing learns; it passes no gradient.

        In mode "mean" the random mask is one and the same for every image, drawn from a key stored here: the paper does
        not say how its random separation is evaluated.
        """
        shape, share = f.shape[1:], self.settings.recalibrated_fraction
        if self.settings.separation == "none":
            return jnp.zeros_like(f)
        if self.settings.separation == "random":
            stored = jax.random.key(0, impl="threefry2x32")
            u = uniforms(stored[None] if mask_mode == "mean" else keys, number, shape, f.dtype)
            return jnp.broadcast_to((u >= share).astype(f.dtype), f.shape)
        values = jax.lax.stop_gradient(f).reshape(f.shape[0], -1)
        # Stable, so that of the many zeros after an activation exactly the share asked for is taken.
        smallest = jnp.argsort(values, axis=-1)[:, : round(share * values.shape[1])]
        kept = jax.vmap(lambda index: jnp.ones(values.shape[1:], f.dtype).at[index].set(0, unique_indices=True))
        return kept(smallest).reshape(f.shape)


def separator(
    network: Any,
    *,
    train: bool,
    mask_mode: str | None,
    beta: float | None,
    keys: jax.Array | None,
    **initializers: Any,
) -> Callable[[str, jax.Array, dict[str, Any]], jax.Array]:
    """Return `separate(block, x, seen)` for the `__call__` of a network.

    It gives `x`, the output of a block, back as the module `fsr_<block>` changes it, or as it is where the network has
    none. The module's `Auxiliary` goes into `seen` under its name. The network has the fields fsr, num_classes, dtype,
    axis_name and the names of its `blocks`; `initializers` are those of `FSR`.
    """
    settings: Separation | None = network.fsr
    if settings is not None:
        settings.check_positions(network.blocks)

    def separate(block: str, x: jax.Array, seen: dict[str, Any]) -> jax.Array:
        if settings is None or block not in settings.positions:
            return x
        name, number = f"fsr_{block}", FIRST_NUMBER + network.blocks.index(block)
        module = FSR(network.num_classes, settings, network.dtype, network.axis_name, **initializers, name=name)
        x, seen[name] = module(x, train=train, mask_mode=mask_mode, beta=beta, keys=keys, number=number)
        return x

    return separate
