"""What training steps and forward passes cost, counted by hand from their configs: the numerator of every floor.

The unit is one forward pass of the batch, of which the reverse in the activations costs one more, and the reverse in
the weights another. Only products of matrices and convolutions are counted. In these forward passes:

* natural training is 3; adversarial training 2 k + 3, for each of the k steps of the attack is a forward pass and the
  reverse in the image. TRADES and MART forward two batches at the end, and TRADES forwards the clean one before its
  attack. FSR's modules are small beside the network and are left out.
* ART: an attribution is a forward pass and two pullbacks, 3. An inner step is that and the reverse in the image, 6; the
  outer loss that and the reverse in weights, 9 for each image of a pair; and 2 of the mask, 3 of the cross-entropy.
* LfF and the others that debias: 3 for each of the two networks; BiasAdv 4 a step, which goes through both, and 3.
* PMG-AFT: 2 k + 3, 3 for the clean images, 1 of the frozen tower. With prompts alone no weight of the tower has a
  gradient: 2 where there is a 3.
* Masked images: cross-entropy 3; the relevance map 1, one more reverse of the same forward pass; masked images 3, and 1
  of the frozen tower; so 8. FD, which masks nothing, is 3 and 1. A frozen teacher of logits is 1. Patches that are
  dropped by chance shorten the sequence, those that are dropped by the map are hidden and cost what they did. Linear
  probing is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.models.network import Network
from jrobust.models.resnet import ResNet
from jrobust.models.wide_resnet import WideResNet


def of_step(section: Mapping[str, Any], *, tokens: int = 0, prompts: bool = False) -> float | None:
    """Return the forward passes' worth of a training step, None for a method that nobody has counted.

    Args:
      section: `config.method`.
      tokens: of a vision transformer, the class token among them; for masked images that are shortened.
      prompts: whether visual prompts are all that is trained.

    >>> of_step({"name": "standard"}), of_step({"name": "adversarial", "num_steps": 10}), of_step(ART)
    (3.0, 23.0, 41.0)
    >>> of_step({"name": "lff"}), of_step({"name": "lff", "biasadv": {"num_steps": 5}})
    (6.0, 29.0)
    >>> [of_step({"name": "pmg_aft", "num_steps": 2}, prompts=alone) for alone in (False, True)]
    [11.0, 9.0]
    >>> [of_step(MASKED | {"masking": masking}) for masking in ("object", "random", "none")]
    [8.0, 7.0, 4.0]
    >>> of_step(MASKED | {"masking": "random", "refilling": "none", "rate": 0.75}, tokens=50)  # 13 of 50 tokens
    4.04
    """
    name, whole = section["name"], 2.0 if prompts else 3.0
    attack = 2.0 * section.get("num_steps", 0)
    if name in ("standard", "identification"):
        return whole
    if name in ("adversarial", "mart", "trades"):
        return attack + whole * (1 if name == "adversarial" else 2) + (name == "trades")
    if name == "pmg_aft":
        return attack + 2 * whole + 1
    if name == "art" and section["objective"] == "equation5":
        images = 2 if section["outer"] == "pair_hard" else 1
        step = 6 + 2 * section.get("inner_cross_entropy", False)
        return 2.0 * bool(section["mask_size"]) + step * section["num_steps"] + 9 * images + 3
    if name in ("erm", "lff"):
        return 6.0 + (4 * section["biasadv"]["num_steps"] + 3 if section.get("biasadv") else 0)
    if name == "linear_probe":
        return 1.0
    return _masked_images(section, tokens) if name == "masked_images" else None


ART = {"name": "art", "objective": "equation5", "outer": "pair_hard", "mask_size": 1000, "num_steps": 3}
MASKED = {"name": "masked_images", "masking": "object", "refilling": "single", "feature_weight": 30.0}


def _masked_images(section: Mapping[str, Any], tokens: int) -> float:
    """Count cross-entropy, map, masked images, and the frozen towers of features and of logits."""
    by_feature, by_logit = bool(section["feature_weight"]), bool(section.get("logit_weight", 0))
    on_masked = by_logit and section.get("logit_images", "clean") == "masked"
    if section["masking"] == "none" or not (by_feature or on_masked):
        return 3.0 + by_feature + by_logit
    length = 1.0
    if section["masking"] == "random" and section["refilling"] == "none":
        length = (1 + int((tokens - 1) * (1 - section["rate"]))) / tokens
    on_clean = by_logit and not on_masked
    return 3 + (section["masking"] != "random") + length * (3 + by_feature + on_masked) + on_clean


def forward_flops(network: Network) -> float | None:
    """Return the FLOPs of one forward pass of one image, two a multiplication; None for a network nobody has counted.

    As the compiler does, multiplications with the zeros of a padding are left out.
    """
    if isinstance(network, TowerClassifier):
        return _vision_transformer(network)
    module, side = getattr(network, "module", None), network.input_shape[0]
    if isinstance(module, WideResNet):
        return _wide_resnet(module, side)
    return _resnet(module, side) if isinstance(module, ResNet) else None


def _vision_transformer(network: TowerClassifier) -> float | None:
    """Count T tokens of width D: a block 2 T (12 D^2 + 2 T D), a patch of p x p pixels 2 3 p^2 D."""
    sizes = network.clip.sizes
    if sizes.patch is None or not isinstance(sizes.image_layers, int):
        return None
    width, patches = sizes.image_width, network.clip.patches() ** 2
    prompts = getattr(network, "prompts", None)
    tokens = 1 + patches + (prompts.tokens if prompts else 0)
    blocks = sizes.image_layers * tokens * (12 * width**2 + 2 * tokens * width)
    heads = width * sizes.embed_dim + sizes.embed_dim * network.num_classes
    return 2.0 * (patches * 3 * sizes.patch**2 * width + blocks + heads)


def _wide_resnet(module: WideResNet, side: int) -> float:
    total, channels = _conv(side, 3, 1, 3, 16), 16
    for stage in range(3):
        features = 16 * module.width * 2**stage
        for block in range((module.depth - 4) // 6):
            stride = 2 if stage and block == 0 else 1
            total += _conv(side, 3, stride, channels, features)
            total += _conv(side, 1, stride, channels, features) if channels != features else 0
            side, channels = -(-side // stride), features
            total += _conv(side, 3, 1, features, features)
    return total + 2.0 * channels * module.num_classes


def _resnet(module: ResNet, side: int) -> float:
    large = module.stem == "imagenet"
    total, channels = _conv(side, *((7, 2) if large else (3, 1)), 3, module.width), module.width
    side = -(-side // 4) if large else side  # after the max-pool
    for stage, blocks in enumerate(module.stages):
        width = module.width * 2**stage
        features = 4 * width if module.bottleneck else width
        for block in range(blocks):
            last = stage == len(module.stages) - 1
            stride = 1 if block or not stage else module.last_stride if last else 2
            if module.shortcut == "conv" and (stride != 1 or channels != features):
                total += _conv(side, 1, stride, channels, features)
            if module.bottleneck:
                total += _conv(side, 1, 1, channels, width) + _conv(side, 3, stride, width, width)
                side = -(-side // stride)
                total += _conv(side, 1, 1, width, features)
            else:
                total += _conv(side, 3, stride, channels, width)
                side = -(-side // stride)
                total += _conv(side, 3, 1, width, width)
            channels = features
    return total + 2.0 * channels * module.num_classes


def _conv(side: int, kernel: int, stride: int, channels: int, features: int) -> float:
    """Return the FLOPs of a square convolution that is padded by half its kernel."""
    places = (stride * place + tap - kernel // 2 for place in range(-(-side // stride)) for tap in range(kernel))
    return 2.0 * sum(0 <= place < side for place in places) ** 2 * channels * features
