"""What ImageNet's 1000 classes are called: their WordNet ids and lemmas, and the names that CLIP's authors chose.

All come from `imagenet_classes.tsv`, a line a class: WordNet id, its first lemma, the name of openai/CLIP (MIT). Class
number k has the k-th of the sorted ids.
"""

from __future__ import annotations

import functools
import pathlib

_FILE = pathlib.Path(__file__).with_name("imagenet_classes.tsv")


@functools.cache
def wnids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids, sorted.

    >>> wnids()[278]
    'n02119789'
    """
    return tuple(row[0] for row in _rows())


@functools.cache
def lemmas() -> dict[str, str]:
    """Return the first lemma of each WordNet id; two classes are called "crane", and two "maillot".

    >>> lemmas()["n02119789"], lemmas()["n02085782"]
    ('kit fox', 'Japanese spaniel')
    """
    return {row[0]: row[1] for row in _rows()}


@functools.cache
def openai_names() -> dict[str, str]:
    """Return the name that CLIP's authors gave to each WordNet id; two are "missile", and two "sunglasses".

    >>> list(openai_names().values())[134], openai_names()["n02085782"]
    ('crane bird', 'Japanese Chin')
    """
    return {row[0]: row[2] for row in _rows()}


def _rows() -> list[list[str]]:
    return [line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines()]
