"""The sizes of the nine released models, and of any other."""

from __future__ import annotations

import dataclasses

from jrobust.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of a model's weights are; hashable.

    `image_layers` is a number of blocks for a ViT and the four numbers of bottlenecks for a ResNet, `patch` the side of
    a ViT's patch and None for a ResNet. Heads left out are of width 64, as in every released model.

    Raises:
      InputError: a width that its heads do not divide, or an image that is no whole number of patches or of the 32
        pixels that are one cell of a ResNet's last map.
    """

    embed_dim: int
    image_size: int  # pixels on a side
    image_width: int  # of the tokens; of a ResNet, the channels of its stem (32 times as many leave it)
    image_layers: int | tuple[int, ...]
    patch: int | None
    text_width: int
    text_layers: int = 12
    vocabulary: int = 49408
    context: int = 77
    image_heads: int = 0
    text_heads: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.image_layers, int):
            object.__setattr__(self, "image_layers", tuple(self.image_layers))
        if isinstance(self.image_layers, int) != (self.patch is not None):
            raise InputError(
                f"image_layers is {self.image_layers} and patch {self.patch}: expected one number of layers and a "
                "patch size for a ViT, four numbers and no patch size for a ResNet"
            )
        if isinstance(self.image_layers, tuple) and len(self.image_layers) != 4:
            raise InputError(f"image_layers is {self.image_layers}: a ResNet tower has four stages")
        widths = {"image": self.image_width * (1 if self.patch else 32), "text": self.text_width}
        for tower, width in widths.items():
            heads = getattr(self, f"{tower}_heads") or max(width // 64, 1)
            object.__setattr__(self, f"{tower}_heads", heads)
            if heads < 1 or width % heads:
                raise InputError(f"{tower}_heads is {heads}: expected a divisor of the width {width}")
        cell = self.patch or 32
        if self.image_size < cell or self.image_size % cell:
            raise InputError(f"image_size is {self.image_size}: expected a multiple of {cell}")


ARCHITECTURES = {
    "ViT-B/32": Sizes(512, 224, 768, 12, 32, 512),
    "ViT-B/16": Sizes(512, 224, 768, 12, 16, 512),
    "ViT-L/14": Sizes(768, 224, 1024, 24, 14, 768),
    "ViT-L/14@336px": Sizes(768, 336, 1024, 24, 14, 768),
    "RN50": Sizes(1024, 224, 64, (3, 4, 6, 3), None, 512),
    "RN101": Sizes(512, 224, 64, (3, 4, 23, 3), None, 512),
    "RN50x4": Sizes(640, 288, 80, (4, 6, 10, 6), None, 640),
    "RN50x16": Sizes(768, 384, 96, (6, 8, 18, 8), None, 768),
    "RN50x64": Sizes(1024, 448, 128, (3, 15, 36, 10), None, 1024),
}
