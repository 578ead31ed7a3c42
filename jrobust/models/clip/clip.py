"""Both towers as one record: what the rest of the library sees of CLIP."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.errors import InputError, unknown
from jrobust.models.bicubic import FORMS, resize
from jrobust.models.clip.architectures import Sizes
from jrobust.models.clip.blocks import ACTIVATIONS
from jrobust.models.clip.modified_resnet import ModifiedResNet
from jrobust.models.clip.prompts import Prompts
from jrobust.models.clip.similarity import INITIAL_LOGIT_SCALE
from jrobust.models.clip.text import TextTransformer
from jrobust.models.clip.vision_transformer import VisionTransformer
from jrobust.models.layers import at_least_float32

MEAN = (0.48145466, 0.4578275, 0.40821073)  # not ImageNet's
STD = (0.26862954, 0.26130258, 0.27577711)
DTYPES = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class CLIP:
    """CLIP for images float[B, H, W, 3] of any size in [0, 1] and texts int[N, T]; hashable, holds no arrays.

    Parameters are one tree {"image", "text", "logit_scale"}; a ResNet's running statistics, which no gradient should
    reach, stand beside them as {"batch_stats": {"image"}}. The towers compute in `dtype`, but layer norms, softmax and
    features are float32 at least, as are all parameters.

    Raises:
      InputError: an unknown dtype, activation or interpolation; a mean or std that is not three numbers, or a std of 0.
    """

    sizes: Sizes  # such as ARCHITECTURES["ViT-B/32"]
    dtype: str = "float32"
    activation: str = "quick_gelu"  # "gelu" for those of open_clip's weights that were trained with it
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bicubic"  # of images that are not of `sizes.image_size`; see `jrobust.models.bicubic`
    # A ViT's blocks are computed once more in the backward pass: memory of one of them, for another forward pass.
    recompute: bool = False

    def __post_init__(self) -> None:
        for field in ("mean", "std"):
            values = tuple(map(float, getattr(self, field)))
            object.__setattr__(self, field, values)
            if len(values) != 3:
                raise InputError(f"{field} is {values}: expected three numbers, red, green and blue")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std}: every number must be positive")
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if self.interpolation not in FORMS:
            raise unknown("interpolation", self.interpolation, FORMS)

    @property
    def image_tower(self) -> nn.Module:
        """The module of images: `VisionTransformer` or `ModifiedResNet`."""
        s = self.sizes
        if isinstance(s.image_layers, tuple):
            return ModifiedResNet(s.embed_dim, s.image_layers, s.image_width, s.image_heads, self.dtype)
        assert s.patch is not None
        settings = (s.embed_dim, s.patch, s.image_width, s.image_layers, s.image_heads)
        return VisionTransformer(*settings, self.activation, self.dtype, self.recompute)

    @property
    def text_tower(self) -> TextTransformer:
        """The module of texts."""
        s = self.sizes
        settings = (s.embed_dim, s.text_width, s.text_layers, s.text_heads, s.vocabulary, s.context)
        return TextTransformer(*settings, self.activation, self.dtype)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Return fresh parameters, drawn as the original's; of a ResNet also its "batch_stats"."""
        return _init(self, key)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Return `(resize(x) - mean) / std`, float32[B, n, n, 3] with n = `sizes.image_size`; float64 stays float64.

        Raises:
          InputError: the images are not float[B, H, W, 3].
        """
        if images.ndim != 4 or images.shape[3] != 3:
            found = "x".join(map(str, images.shape))
            raise InputError(f"images have shape {found}: CLIP expects BxHxWx3 (batch, height, width, channels)")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images are {images.dtype}: CLIP expects floating point in [0, 1]; divide by 255")
        images = resize(images, self.sizes.image_size, self.interpolation)
        return (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)

    def image_features(
        self,
        params: Any,
        images: jax.Array,
        *,
        prompts: Prompts | None = None,
        keep: jax.Array | None = None,
        factors: Sequence[jax.Array] | None = None,
    ) -> jax.Array:
        """Return the features float32[B, E] of `images` float[B, H, W, 3] in [0, 1], which have no unit length.

        Resizing and normalisation are inside, and differentiable.

        Args:
          params, images: see `CLIP`.
          prompts: added to every image.
          keep: of a ViT's N patches, in the order of reading, those that are seen: bool[B, N], or the places of K of
            them, each once, int[B, K], which costs the less the fewer they are.
          factors: a ViT's attention probabilities are P (1 + e), with one e a block as in `no_factors`.

        Raises:
          InputError: images of another kind; prompts, patches or factors that do not fit, or are given to a ResNet.
        """
        extra = None if factors is None else {"factors": self._by_block(factors, "factors")}
        return self._image(params, images, prompts, extra, keep=keep)[0]

    def no_factors(self, batch: int, *, prompts: Prompts | None = None) -> tuple[jax.Array, ...]:
        """Return the `factors` of `image_features` that change nothing: zeros float32[batch, heads, T, T] a block.

        T counts the class token, the patches and the prompts' tokens.

        Raises:
          InputError: the tower is a ResNet.
        """
        tokens = 1 + self.patches() ** 2 + (0 if prompts is None or prompts.tokens is None else len(prompts.tokens))
        shape = (batch, self.sizes.image_heads, tokens, tokens)
        zeros = jnp.zeros(shape, at_least_float32(self.dtype))
        return self._layers() * (zeros,)

    def patches(self) -> int:
        """Return the number of a ViT's patches on a side of an image.

        Raises:
          InputError: the tower is a ResNet.
        """
        self._layers()
        assert self.sizes.patch is not None
        return self.sizes.image_size // self.sizes.patch

    def image_features_and_attention(
        self, params: Any, images: jax.Array, perturbations: Any = None, *, prompts: Prompts | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Return the features and each block's attention probabilities, after softmax, of a ViT.

        Args:
          params, images, prompts: as in `image_features`.
          perturbations: one array, or number, a block, added to its probabilities: the gradient with respect to it is
            that with respect to the probabilities. None adds nothing.

        Returns:
          Features float32[B, E], and float32[B, heads, T, T] a block, first block first; rows are queries, token 0 is
          the class token, then patches in the order of reading, then prompts.

        Raises:
          InputError: as `image_features`; the tower is a ResNet, or there is not one perturbation a block.
        """
        layers, extra = self._layers(), {}
        if perturbations is not None:
            extra = {"perturbations": self._by_block(perturbations, "perturbations")}
        features, seen = self._image(params, images, prompts, extra, mutable=["intermediates"])
        blocks = [seen["intermediates"][f"blocks_{i}"]["attn"]["probabilities"] for i in range(layers)]
        return features, tuple(probabilities for (probabilities,) in blocks)

    def text_features(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Return the features float32[N, E] of ids int[N, T], T at most the context; they have no unit length.

        Raises:
          InputError: the ids are not whole numbers in rows, or too many in a row.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise InputError(f"texts are {tokens.dtype}{list(tokens.shape)}: expected rows of token ids, int32[N, T]")
        features = self.text_tower.apply({"params": params["text"]}, tokens)
        assert isinstance(features, jax.Array)
        return features

    def _layers(self) -> int:
        """Return the number of a ViT's blocks."""
        if not isinstance(self.sizes.image_layers, int):
            raise InputError("a ResNet tower has no attention blocks and patches: take a ViT")
        return self.sizes.image_layers

    def _by_block(self, arrays: Sequence[jax.Array], name: str) -> dict[str, Any]:
        """Return the collection that gives each block's attention an array."""
        if len(arrays) != self._layers():
            raise InputError(f"{len(arrays)} {name} for {self._layers()} blocks: expected one a block")
        return {f"blocks_{i}": {"attn": {"probabilities": array}} for i, array in enumerate(arrays)}

    def _image(
        self,
        params: Any,
        images: jax.Array,
        prompts: Prompts | None,
        extra: Any = None,
        *,
        keep: jax.Array | None = None,
        mutable: Any = (),
    ) -> tuple[jax.Array, Any]:
        """Return features and the collections that are `mutable`."""
        z = self.preprocess(images)
        inputs: dict[str, Any] = {}
        if keep is not None:
            patches = self.patches() ** 2
            wrong = keep.shape[1:] != (patches,) if keep.dtype == bool else not jnp.issubdtype(keep.dtype, jnp.integer)
            if keep.ndim != 2 or len(keep) != len(z) or wrong:
                raise InputError(
                    f"keep is {keep.dtype}{list(keep.shape)}: expected bool[{len(z)}, {patches}], or places of patches "
                    f"int[{len(z)}, K]"
                )
            inputs["keep"] = keep
        if prompts is not None:
            pixels = prompts.image()
            if pixels is not None:
                if pixels.shape != z.shape[1:]:
                    found, expected = ("x".join(map(str, a)) for a in (pixels.shape, z.shape[1:]))
                    raise InputError(f"the pixel prompt is {found}: this model's images are {expected}")
                z = z + pixels
            if prompts.tokens is not None:
                width = self.sizes.image_width
                if self.sizes.patch is None or prompts.tokens.ndim != 2 or prompts.tokens.shape[1] != width:
                    found = "x".join(map(str, prompts.tokens.shape))
                    kind = f"Px{width}" if self.sizes.patch else "none, for a ResNet has no tokens"
                    raise InputError(f"prompt tokens are {found}: expected {kind}")
                inputs["prompts"] = prompts.tokens
        variables = {"params": params["image"]} | (extra or {})
        if "batch_stats" in params:
            variables["batch_stats"] = params["batch_stats"]["image"]
        features, seen = self.image_tower.apply(variables, z, **inputs, mutable=list(mutable))
        return features, seen


@functools.partial(jax.jit, static_argnums=0)
def _init(clip: CLIP, key: jax.Array) -> dict[str, Any]:
    image_key, text_key = jax.random.split(key)
    side = clip.sizes.image_size
    image = clip.image_tower.init(image_key, jnp.zeros((1, side, side, 3), jnp.float32))
    text = clip.text_tower.init(text_key, jnp.zeros((1, clip.sizes.context), jnp.int32))
    wide = at_least_float32(clip.dtype)
    params = {"image": image["params"], "text": text["params"], "logit_scale": jnp.asarray(INITIAL_LOGIT_SCALE, wide)}
    if "batch_stats" in image:
        # Flax starts running statistics in float32 even where a float64 body will turn them into float64.
        params["batch_stats"] = {"image": jax.tree.map(lambda leaf: leaf.astype(wide), image["batch_stats"])}
    return params
