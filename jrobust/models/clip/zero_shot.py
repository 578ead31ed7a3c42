"""CLIP's image tower as a classifier: texts of the classes stand where others have a linear layer.

The texts are encoded once (`class_features`). The text tower is in no training step, no attack and no checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jrobust.errors import InputError, unknown
from jrobust.models.clip.architectures import ARCHITECTURES, Sizes
from jrobust.models.clip.clip import CLIP
from jrobust.models.clip.prompts import Prompts, border
from jrobust.models.clip.similarity import INITIAL_LOGIT_SCALE, similarity, unit
from jrobust.models.network import Prediction
from jrobust.replicated import Replicated

PIXELS = ("", "border", "full")


@dataclasses.dataclass(frozen=True)
class PromptSizes:
    """What visual prompts are made of: pixels, tokens or both. All are drawn from N(0, 1), as in TeCoA's code.

    Attributes:
      pixels: "border", a frame of `width` pixels; "full", the whole image; "" for none.
      width: of the frame.
      tokens: how many stand behind the patches.

    Raises:
      InputError: an unknown word, a number out of range, or nothing at all.
    """

    pixels: str = "border"
    width: int = 30
    tokens: int = 100

    def __post_init__(self) -> None:
        if self.pixels not in PIXELS:
            raise unknown("model.prompts.pixels", self.pixels, PIXELS)
        if self.tokens < 0 or (not self.pixels and not self.tokens):
            raise InputError(
                f"model.prompts has pixels {self.pixels!r} and {self.tokens} tokens: expected one or the other, or both"
            )

    def init(self, key: jax.Array, sizes: Sizes) -> Prompts:
        """Return fresh prompts for a tower."""
        pixel_key, token_key = jax.random.split(key)
        side = sizes.image_size
        pixels: Any = None
        if self.pixels == "border":
            pixels = border(pixel_key, side, self.width)
        elif self.pixels == "full":
            pixels = jax.random.normal(pixel_key, (side, side, 3))
        tokens = jax.random.normal(token_key, (self.tokens, sizes.image_width)) if self.tokens else None
        return Prompts(pixels, tokens)


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Images float[B, H, W, 3] in [0, 1] of any size to logits over classes that texts describe; holds no arrays.

        z_k = s <f(x) / |f(x)|, W_k>        f the image tower, W_k the unit feature of class k's texts

    It has the interface of `jrobust.models.classifier.Classifier`, so methods take it as they take any network.
    Parameters are the image tower or, with `prompts`, those alone. All else is state, and frozen: {"text": W
    float32[K, E], "logit_scale": float32[], "tower" with `prompts`, "batch_stats" of a ResNet}, each `Replicated`.

    Attributes:
      clip: the towers.
      num_classes: K of the training set; W decides what is computed.
      input_shape: of the training images.
      scaled: s = exp(logit_scale), about 100 in the released weights, as in TeCoA's code; else s = 1, as in that of
        PMG-AFT, whose second normalisation of the texts removes the scale.
      prompts: what is trained in the place of the tower; None trains the tower.
      axis_name: of the devices under `pmap`.
    """

    clip: CLIP
    num_classes: int
    input_shape: tuple[int, int, int]
    scaled: bool = True
    prompts: PromptSizes | None = None
    axis_name: str | None = None

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the normalisation."""
        return self.clip.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Of the normalisation."""
        return self.clip.std

    @property
    def resize_to(self) -> int:
        """Side of the square that the tower sees."""
        return self.clip.sizes.image_size

    @property
    def has_map(self) -> bool:
        """Whether there is a last feature map for Grad-CAM: a transformer has none."""
        return False

    def with_axis(self, axis_name: str | None) -> ZeroShot:
        """Return this model for another axis of devices."""
        return dataclasses.replace(self, axis_name=axis_name)

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return fresh `(params, state)`, the texts' features random directions."""
        return _init(self.with_axis(None), key)

    def pretrained(self, fresh: Any, clip_params: Mapping[str, Any], text: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)` with the weights of a whole CLIP; prompts stay as they are in `fresh`.

        Args:
          fresh: parameters as `init` returns them.
          clip_params: as `CLIP.init` returns them.
          text: W float32[K, E], see `class_features`.
        """
        wide = jnp.promote_types(jnp.float32, self.clip.dtype)
        state = {"text": Replicated(text.astype(wide)), "logit_scale": Replicated(clip_params["logit_scale"])}
        if "batch_stats" in clip_params:
            state["batch_stats"] = Replicated(clip_params["batch_stats"])
        if self.prompts is None:
            return clip_params["image"], state
        return fresh, state | {"tower": Replicated(clip_params["image"])}

    def apply(
        self,
        params: Any,
        state: Any,
        images: jax.Array,
        *,
        train: bool = False,
        beta: float | None = None,
        keys: jax.Array | None = None,
        mask_mode: str | None = None,
        intermediates: bool = False,
        perturbation: Any = None,
    ) -> Prediction:
        """Return the logits of `images`, and as the intermediate "features" f(x) float32[B, E], not of unit length.

        Nothing in a tower depends on `train`, `keys` or `mask_mode`: no dropout, and batch norm is frozen.

        Raises:
          InputError: images of another kind; `beta` or `perturbation`, which towers have no place for.
        """
        del train, keys, mask_mode
        if beta is not None or perturbation is not None:
            raise InputError("CLIP's towers have neither ReLU to soften nor a last feature map: choose another model")
        features = self.features(params, state, images)
        return Prediction(self.logits(state, features), state, {"features": features} if intermediates else {})

    def features(self, params: Any, state: Any, images: jax.Array) -> jax.Array:
        """Return f(x) float32[B, E], through the prompts if there are any."""
        if self.prompts is None:
            return self._tower(params, state, images)
        return self._tower(state["tower"].value, state, images, params)

    def original_features(self, state: Any, images: jax.Array, prompts: Prompts | None = None) -> jax.Array:
        """Return f0(x) float32[B, E] of the frozen tower state["tower"]."""
        return self._tower(state["tower"].value, state, images, prompts)

    def logits(self, state: Any, features: jax.Array) -> jax.Array:
        """Return z float32[B, K] of features float32[B, E]."""
        return similarity(features, state["text"].value, state["logit_scale"].value if self.scaled else None)

    def _tower(self, tower: Any, state: Any, images: jax.Array, prompts: Prompts | None = None) -> jax.Array:
        variables = {"image": tower}
        if "batch_stats" in state:
            variables["batch_stats"] = state["batch_stats"].value
        return self.clip.image_features(variables, images, prompts=prompts)


@functools.partial(jax.jit, static_argnums=0)
def _init(model: ZeroShot, key: jax.Array) -> tuple[Any, Any]:
    tower_key, text_key, prompt_key = jax.random.split(key, 3)
    whole = model.clip.init(tower_key)  # the text tower is not computed: nothing depends on it
    whole["logit_scale"] = jnp.full_like(whole["logit_scale"], INITIAL_LOGIT_SCALE)
    text = unit(jax.random.normal(text_key, (model.num_classes, model.clip.sizes.embed_dim)))
    prompts = None if model.prompts is None else model.prompts.init(prompt_key, model.clip.sizes)
    return model.pretrained(prompts, whole, text)


def class_features(clip: CLIP, params: Any, tokens: jax.Array, *, chunk: int = 256) -> jax.Array:
    """Return W float32[K, E], the unit feature of each class: of its texts' unit features the mean, made unit again.

    Args:
      clip, params: the towers; `params` needs only "text".
      tokens: int32[K, M, T], M texts a class.
      chunk: texts at a time.
    """
    classes, texts, length = tokens.shape
    rows = jnp.asarray(tokens, jnp.int32).reshape(-1, length)
    short = -len(rows) % min(chunk, len(rows))
    rows = jnp.concatenate([rows, jnp.repeat(rows[-1:], short, 0)]).reshape(-1, min(chunk, len(rows)), length)
    features = jnp.concatenate([_text_features(clip, params["text"], part) for part in rows])
    return unit(jnp.mean(features[: classes * texts].reshape(classes, texts, -1), axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _text_features(clip: CLIP, text: Any, tokens: jax.Array) -> jax.Array:
    return unit(clip.text_features({"text": text}, tokens))


# Fields of config.model of a CLIP; those of the second line are for whoever makes the texts.
FIELDS = ("name", "architecture", "sizes", "activation", "interpolation", "scaled", "prompts", "dtype", "mean", "std")
FOR_TEXTS = ("weights", "vocabulary", "template")


def towers(config_model: Mapping[str, Any]) -> CLIP:
    """Return the towers that a config section names.

    Args:
      config_model: `architecture`, one of `ARCHITECTURES`, or "" and `sizes`, the fields of `Sizes`; and any of
        `dtype`, `activation`, `interpolation`, `mean`, `std`.

    Raises:
      InputError: an unknown architecture, or sizes that make no model.
    """
    config = dict(config_model)
    for field in config:
        if field not in (*FIELDS, *FOR_TEXTS):
            raise unknown("field of model 'clip'", field, (*FIELDS, *FOR_TEXTS))
    architecture, sizes = config.get("architecture", ""), dict(config.get("sizes") or {})
    if sizes:
        names = [field.name for field in dataclasses.fields(Sizes)]
        for field in sizes:
            if field not in names:
                raise unknown("field of model.sizes", field, names)
        chosen = Sizes(**sizes)
    elif architecture in ARCHITECTURES:
        chosen = ARCHITECTURES[architecture]
    else:
        raise unknown("model.architecture", architecture, ARCHITECTURES, "or give model.sizes")
    settings: dict[str, Any] = {
        name: config[name] for name in ("dtype", "activation", "interpolation") if name in config
    }
    settings |= {name: tuple(config[name]) for name in ("mean", "std") if config.get(name)}
    return CLIP(chosen, **settings)


def build(config_model: Mapping[str, Any], *, num_classes: int, input_shape: Sequence[int]) -> ZeroShot:
    """Return the classifier of a config section; see `towers`. `scaled` and `prompts` are the fields of `ZeroShot`.

    Raises:
      InputError: as `towers`; images that are not RGB.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or shape[2] != 3:
        raise InputError(f"images have the shape {shape}: CLIP expects three channels, red, green and blue")
    prompts = dict(config_model.get("prompts") or {})
    names = [field.name for field in dataclasses.fields(PromptSizes)]
    for field in prompts:
        if field not in names:
            raise unknown("field of model.prompts", field, names)
    return ZeroShot(
        towers(config_model),
        num_classes,
        shape,
        scaled=bool(config_model.get("scaled", True)),
        prompts=PromptSizes(**prompts) if prompts else None,
    )
