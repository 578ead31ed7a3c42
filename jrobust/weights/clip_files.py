"""Where CLIP's published weights are to be had, and with which activation they were trained.

The table is for messages: any file that `jrobust.weights.clip_layouts` reads will do, whatever its SHA-256. None is
fetched here.
"""

from __future__ import annotations

from typing import NamedTuple

from jrobust.errors import InputError

OPENAI = "https://openaipublic.azureedge.net/clip/models"


class Published(NamedTuple):
    """The files of one architecture."""

    file: str  # OpenAI's, also in its URL
    sha256: str
    open_clip: str = ""  # the name of the model there; "" where it has only OpenAI's weights
    hugging_face: str = ""  # the repository of model.safetensors; "" for a ResNet, which has none

    @property
    def url(self) -> str:
        """Of OpenAI's file."""
        return f"{OPENAI}/{self.sha256}/{self.file}"


PUBLISHED = {
    "ViT-B/32": Published(
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        "ViT-B-32",
        "openai/clip-vit-base-patch32",
    ),
    "ViT-B/16": Published(
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        "ViT-B-16",
        "openai/clip-vit-base-patch16",
    ),
    "ViT-L/14": Published(
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "ViT-L-14",
        "openai/clip-vit-large-patch14",
    ),
    "ViT-L/14@336px": Published(
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        hugging_face="openai/clip-vit-large-patch14-336",
    ),
    "RN50": Published("RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50"),
    "RN101": Published("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "RN101"),
    "RN50x4": Published("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
    "RN50x16": Published("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
    "RN50x64": Published("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
}
FORMATS = ".pt, .pth, .safetensors or .npz, under OpenAI's, open_clip's or Hugging Face's names"


def missing(architecture: str, path: str = "") -> InputError:
    """Return the error for weights that are not there: where they are to be had, and what is read.

    Args:
      architecture: one of `jrobust.models.clip.ARCHITECTURES`, or anything else for a model that nobody publishes.
      path: as it was given; "" where none was.
    """
    found = f"model.weights is {path!r}, which is no file" if path else "model.weights is not set"
    if architecture not in PUBLISHED:
        return InputError(
            f"{found}: expected the weights of a whole CLIP of model.sizes, image and text tower, as {FORMATS}"
        )
    known = PUBLISHED[architecture]
    places = [f"OpenAI's {known.url}"]
    places += [f"model.safetensors of {known.hugging_face} on Hugging Face"] if known.hugging_face else []
    other = f", or one for open_clip's {known.open_clip}, {_activation(architecture)}" if known.open_clip else ""
    return InputError(
        f"{found}: expected the file of a whole CLIP {architecture}, such as {' or '.join(places)}, with "
        f"model.activation='quick_gelu'{other}; read are {FORMATS}"
    )


def published(sha256: str) -> str:
    """Return what is published under a SHA-256, "" for a file of others.

    >>> published("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"), published("0")
    ("OpenAI's ViT-B-32.pt", '')
    """
    return next((f"OpenAI's {known.file}" for known in PUBLISHED.values() if known.sha256 == sha256), "")


def _activation(architecture: str) -> str:
    """Return which of open_clip's weights need which activation."""
    if architecture.startswith("RN"):
        return "with 'quick_gelu' for those trained on YFCC15M or CC12M"
    gelu = "LAION-2B, DataComp or CommonPool" if architecture == "ViT-B/32" else "LAION, DataComp or CommonPool"
    quick = "LAION-400M, MetaCLIP's and DFN-2B's" if architecture == "ViT-B/32" else "MetaCLIP's and DFN-2B's"
    return f"with 'gelu' for those trained on {gelu}, 'quick_gelu' for {quick}"
