"""CLIP's tokenizer: lower-cased byte-pair encoding with a vocabulary file that CLIP's authors publish.

The file is `bpe_simple_vocab_16e6.txt.gz` of the repository openai/CLIP; the `merges.txt` of Hugging Face's copies of
CLIP holds the same merges. It is not part of this library.
"""

from __future__ import annotations

import gzip
import html
import itertools
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from jrobust.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_MERGES = 49152 - 256 - 2  # CLIP's file lists more than its models know
MAX_BYTES = 64 * 2**20
SPECIAL = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)
# What ftfy, with which CLIP cleans its texts, does to text that is not broken: straight quotes, no ligatures, no wide
# forms, no control characters.
QUOTES = dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
LIGATURES = "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬅﬆ"
WIDE = map(chr, (0x3000, *range(0xFF01, 0xFFF0)))
CONTROL = (*range(0x9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
CLEANED: dict[int, str | None] = {
    **{ord(char): unicodedata.normalize("NFKC", char) for char in (*WIDE, *LIGATURES)},
    ord("ŉ"): "'n",
    ord("ﬅ"): "\u017ft",
    **QUOTES,
    **dict.fromkeys(CONTROL),
}


class Tokenizer:
    """Texts to token ids, as CLIP was trained with.

    The ids are those of the released tokenizer, but for text that looks as if its bytes had been decoded wrongly (such
    as `cafÃ©`), which the released one repairs and this one takes as it is.

    Attributes:
      vocabulary: the number of ids; the last two are the start and the end token.
      context: the number of ids of a row.
    """

    def __init__(self, path: str | pathlib.Path, *, context: int = 77):
        """Read a vocabulary.

        Args:
          path: a text file, compressed by gzip or not: a line that is passed over, then one merge of two symbols a
            line, of which the first 48,894 count.
          context: the number of ids of a row.

        Raises:
          InputError: the file cannot be read, is damaged or is no such list.
        """
        merges = _read(pathlib.Path(path))
        letters = list(_alphabet().values())
        symbols = [*letters, *(f"{letter}</w>" for letter in letters)]
        known = set(symbols)
        for number, pair in enumerate(merges, start=2):
            if len(pair) != 2 or not known.issuperset(pair):
                raise InputError(
                    f"{path} is no vocabulary of CLIP: line {number} is {' '.join(pair)!r:.60}, expected two symbols "
                    "of earlier lines; fetch bpe_simple_vocab_16e6.txt.gz from openai/CLIP"
                )
            symbols.append("".join(pair))
            known.add(symbols[-1])
        self.context = context
        self.vocabulary = len(symbols) + 2
        self.start, self.end = self.vocabulary - 2, self.vocabulary - 1
        self._ids = {symbol: number for number, symbol in enumerate(symbols)}
        self._symbols = symbols
        self._ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(merges)}
        self._pieces: dict[str, list[int]] = {START: [self.start], END: [self.end]}

    def __call__(self, texts: str | Sequence[str], *, truncate: bool = False) -> np.ndarray:
        """Return int32[N, context]: a row for each text, of the start token, its ids, the end token and zeros.

        Args:
          texts: one text, or N of them.
          truncate: cut what is too long, so that the end token is the last of its row.

        Raises:
          InputError: a text is too long, and is not to be cut.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.zeros((len(texts), self.context), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > self.context:
                if not truncate:
                    raise InputError(
                        f"the text {text!r:.60} has {len(ids)} tokens with start and end, the network reads "
                        f"{self.context}: shorten it, or ask for truncation"
                    )
                ids = [*ids[: self.context - 1], self.end]
            row[: len(ids)] = ids
        return rows

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without start and end; as in CLIP, a text may spell these two itself."""
        return [number for piece in split(clean(text)) for number in self._encode(piece)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the cleaned text of ids, with a space after each word and start, end and zeros behind it left out."""
        letters = {letter: byte for byte, letter in _alphabet().items()}
        listed = [int(number) for number in ids]
        end = listed.index(self.end) if self.end in listed else len(listed)
        words = "".join(self._symbols[number] for number in listed[:end] if number != self.start)
        # A space is no letter of the alphabet, so that it can stand for the end of a word.
        words = words.replace("</w>", " ")
        return b"".join(b" " if char == " " else bytes([letters[char]]) for char in words).decode("utf-8", "replace")

    def _encode(self, piece: str) -> list[int]:
        """Return the ids of a piece: its bytes, of which the neighbours of lowest rank are merged again and again."""
        if piece not in self._pieces:
            alphabet = _alphabet()
            parts = [alphabet[byte] for byte in piece.encode()]
            parts[-1] += "</w>"
            while len(parts) > 1:
                pair = min(itertools.pairwise(parts), key=lambda pair: self._ranks.get(pair, MAX_MERGES))
                if pair not in self._ranks:
                    break
                parts = _merge(parts, pair)
            self._pieces[piece] = [self._ids[part] for part in parts]
        return self._pieces[piece]


def clean(text: str) -> str:
    """Return a text as CLIP sees it: its characters in one form, HTML resolved, single spaces, lower case.

    >>> clean("  A “cat” &amp;amp;\\n DOG ")
    'a "cat" & dog'
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if "<" not in text:  # in which ftfy sees HTML that is meant
        text = html.unescape(text)
    text = unicodedata.normalize("NFC", text.translate(CLEANED))
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip().lower()


def split(text: str) -> list[str]:
    """Return the pieces of a cleaned text that are encoded each by itself, without the spaces between them.

    These are the start and end token, English contractions, runs of letters, single digits, and runs of anything else.

    >>> split("it's 42 dogs, isn't it?!")
    ['it', "'s", '4', '2', 'dogs', ',', 'isn', "'t", 'it', '?!']
    """
    pieces = []
    position = 0
    while position < len(text):
        kind = _kind(text[position])
        special = SPECIAL.match(text, position)
        end = special.end() if special else position + 1
        while not special and kind in "LX" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != " ":
            pieces.append(text[position:end])
        position = end
    return pieces


def _kind(char: str) -> str:
    """Return L for a letter, N for a digit or number, a space for white space, X for anything else."""
    kind = unicodedata.category(char)[0]
    return " " if char.isspace() else kind if kind in "LN" else "X"


def _alphabet() -> dict[int, str]:
    """Return the printable character that stands for each byte, in the order of their ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Return symbols with each occurrence of a pair, from left to right, made one."""
    merged = []
    position = 0
    while position < len(parts):
        width = 2 if tuple(parts[position : position + 2]) == pair else 1
        merged.append("".join(parts[position : position + width]))
        position += width
    return merged


def _read(path: pathlib.Path) -> list[list[str]]:
    """Return the symbols of each line behind the first."""
    try:
        with open(path, "rb") as start:
            compressed = start.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        lines = content.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"the vocabulary {path} cannot be read ({error}): expected bpe_simple_vocab_16e6.txt.gz of openai/CLIP"
        ) from error
    if len(content) > MAX_BYTES:
        raise InputError(f"the vocabulary {path} has more than {MAX_BYTES} bytes: it is another file")
    merges = [line.split() for line in lines[1 : 1 + MAX_MERGES]]
    while merges and not merges[-1]:
        merges.pop()
    if not merges:
        raise InputError(f"the vocabulary {path} is empty: expected bpe_simple_vocab_16e6.txt.gz of openai/CLIP")
    return merges
