"""Both towers as one record: what the rest of the library sees of CLIP."""

from __future__ import annotations

import dataclasses
import functools
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
        return VisionTransformer(*settings, self.activation, self.dtype)

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

    def image_features(self, params: Any, images: jax.Array, *, prompts: Prompts | None = None) -> jax.Array:
        """Return the features float32[B, E] of `images` float[B, H, W, 3] in [0, 1], which have no unit length.

        Resizing and normalisation are inside, and differentiable. `prompts` are added to every image.

        Raises:
          InputError: images of another kind; prompts that do not fit, or tokens for a ResNet.
        """
        return self._image(params, images, prompts)[0]

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
        layers = self.sizes.image_layers
        if not isinstance(layers, int):
            raise InputError("a ResNet tower has no attention blocks: attention maps are those of a ViT")
        extra = {}
        if perturbations is not None:
            if len(perturbations) != layers:
                raise InputError(f"{len(perturbations)} perturbations for {layers} blocks: expected one a block")
            shifts = {f"blocks_{i}": {"attn": {"probabilities": p}} for i, p in enumerate(perturbations)}
            extra = {"perturbations": shifts}
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

    def _image(
        self, params: Any, images: jax.Array, prompts: Prompts | None, extra: Any = None, mutable: Any = ()
    ) -> tuple[jax.Array, Any]:
        """Return features and the collections that are `mutable`."""
        z = self.preprocess(images)
        tokens: tuple[jax.Array, ...] = ()
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
                tokens = (prompts.tokens,)
        variables = {"params": params["image"]} | (extra or {})
        if "batch_stats" in params:
            variables["batch_stats"] = params["batch_stats"]["image"]
        features, seen = self.image_tower.apply(variables, z, *tokens, mutable=list(mutable))
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
