"""CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021)."""

from jrobust.models.clip.architectures import ARCHITECTURES, Sizes
from jrobust.models.clip.clip import CLIP
from jrobust.models.clip.prompts import Prompts
from jrobust.models.clip.similarity import similarity

__all__ = ["ARCHITECTURES", "CLIP", "Prompts", "Sizes", "similarity"]
