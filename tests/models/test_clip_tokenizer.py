"""CLIP's tokenizer: what it does on a vocabulary small enough to follow by hand, and its ids on the released one."""
# ruff: noqa: RUF001 (characters that look like others are what is tested)

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models.clip.tokenizer import MAX_MERGES, Tokenizer, clean, split

# The id of a printable ASCII character is its code less 33; with 256 more it ends a word.
A, B, C, S, T = (ord(letter) - 33 for letter in "abcst")
LAST = 256
MERGES = ["a t</w>", "c a", "c at</w>", "a a"]  # ids 512 to 515; so the start token is 516 and the end token 517
START, END = 516, 517


def vocabulary(path, merges, compressed=False):
    content = "\n".join(['"a header"', *merges, ""]).encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


@pytest.fixture
def tiny(tmp_path):
    return Tokenizer(vocabulary(tmp_path / "merges.txt", MERGES), context=8)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("a", [A + LAST]),
        ("b c", [B + LAST, C + LAST]),
        ("at", [512]),
        ("cat", [514]),  # a t</w> is of lower rank than c a, which stands before it
        ("cats", [513, T, S + LAST]),  # a t inside of a word is another symbol than one at its end
        ("caat", [513, 512]),
        ("aaab", [515, A, B + LAST]),  # from left to right
        ("aaaab", [515, 515, B + LAST]),  # all of them at once
        ("aa", [A, A + LAST]),
        ("CAT's cAt", [514, ord("'") - 33, S + LAST, 514]),
        ("é", [127, 102 + LAST]),  # bytes C3 A9: behind the 94 of ASCII come 12 from A1 on, then 82 from AE on
        ("ā", [128, 223 + LAST]),  # C4 81: the 36th byte that is not printable; these begin at 188
        ("í", [127, 255 + LAST]),  # C3 AD: AD is the last of them
        ("<|startoftext|>cat<|ENDOFTEXT|>at", [START, 514, END, 512]),
    ],
)
def test_merges(tiny, text, ids):
    assert tiny.encode(text) == ids
    assert tiny.encode(text) == ids  # remembered


def test_sizes(tiny):
    assert (tiny.vocabulary, tiny.start, tiny.end, tiny.context) == (518, START, END, 8)


def test_rows_are_filled_with_zeros(tiny):
    rows = tiny(["cat", "", "b b b b b b"])
    assert rows.dtype == np.int32
    filled = [[START, 514, END, *[0] * 5], [START, END, *[0] * 6], [START, *[B + LAST] * 6, END]]
    np.testing.assert_array_equal(rows, filled)
    np.testing.assert_array_equal(tiny("cat"), rows[:1])
    assert tiny([]).shape == (0, 8)


def test_a_long_text_is_refused_or_cut(tiny):
    with pytest.raises(
        InputError, match=r"'b b b b b b\\nb' has 9 tokens with start and end, the network reads 8"
    ) as error:
        tiny(["cat", "b b b b b b\nb"])
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(tiny("cat " * 9, truncate=True), [[START, *[514] * 6, END]])
    np.testing.assert_array_equal(tiny("cat", truncate=True), tiny("cat"))


@pytest.mark.parametrize(("text", "shown"), [("The CAT é", "the cat é "), ("日 ā", "日 ā "), ("", "")])
def test_decoding(tiny, text, shown):
    assert tiny.decode(tiny.encode(text)) == shown
    assert tiny.decode([START, *tiny.encode(text), END, 0, 0]) == shown


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A \t\n B\u00a0\u3000c ", "a b c"),
        ("&lt;b&gt; &amp;amp; &eacute;", "<b> & é"),
        ("it’s “q” ‘r’", "it's \"q\" 'r'"),
        ("ﬁsh ＡＢ１ ｱ", "fish ab1 ア"),
        ("cafe\u0301", "café"),
        ("a\x00\ufeffb\x0bc\x7f", "abc"),
        ("ÀÉ İ Σ", "àé i̇ σ"),
        ("\ud83d\ude00 \ud83d!", "😀 \ufffd!"),
        ("naïve — ☃", "naïve — ☃"),
    ],
)
def test_cleaning(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a photo of a cat.", ["a", "photo", "of", "a", "cat", "."]),
        ("jack-o'-lantern, 1989!", ["jack", "-", "o", "'-", "lantern", ",", "1", "9", "8", "9", "!"]),
        ("we'll i'd they're", ["we", "'ll", "i", "'d", "they", "'re"]),
        ("i've i'm it's don't", ["i", "'ve", "i", "'m", "it", "'s", "don", "'t"]),
        ("'save 'x dogs'", ["'s", "ave", "'", "x", "dogs", "'"]),  # a contraction wherever it can be one
        ("!'s a'", ["!'", "s", "a", "'"]),  # but not inside of a run
        ("'ſo it'S", ["'ſ", "o", "it", "'S"]),  # whose capital is S
        ("x_y__1", ["x", "_", "y", "__", "1"]),
        ("²½Ⅷ一二 日本語", ["²", "½", "Ⅷ", "一二", "日本語"]),  # Chinese numerals are letters
        ("-<|endoftext|><|endoftext|>", ["-<|", "endoftext", "|><|", "endoftext", "|>"]),
        ("a<|endoftext|>b", ["a", "<|endoftext|>", "b"]),
        ("e\u0302 👍🏽", ["e", "\u0302", "👍🏽"]),
    ],
)
def test_pieces(text, pieces):
    assert split(text) == pieces


def test_the_first_merges_count(tmp_path):
    merges = [f"{chr(0x100 + i % 68)} {chr(0x100 + i // 68 % 68)}" for i in range(68 * 68)] * 11
    path = vocabulary(tmp_path / "merges.txt.gz", merges, compressed=True)
    assert len(merges) > MAX_MERGES and Tokenizer(path).vocabulary == 49408


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"header\n\n\n", "is empty"),
        (b"header\na b\nc\n", "line 3 is 'c', expected two symbols"),
        (b"header\na b\nabc d\n", "line 3 is 'abc d', expected two symbols of earlier lines"),
        (b"header\na b c\n", "line 2"),
        (b"header\n\na b\n", "line 2"),
        (b"header\n\xff\xfe\n", "cannot be read"),
        (gzip.compress(b"header\na b\n" * 99, mtime=0)[:-9], "cannot be read"),
        (gzip.compress(b"header\na b\n", mtime=0)[:5], "cannot be read"),
    ],
)
def test_bad_vocabularies_are_one_line(tmp_path, content, message):
    path = tmp_path / "merges.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"merges.txt.*{message}.*") as error:
        Tokenizer(path)
    assert "bpe_simple_vocab_16e6.txt.gz" in str(error.value) and "\n" not in str(error.value)


# Of openai/CLIP's own tokenizer, without start and end.
GOLDEN = {
    "a photo of a cat.": [320, 1125, 539, 320, 2368, 269],
    "This is a photo of a golden retriever": [589, 533, 320, 1125, 539, 320, 3878, 28394],
    "A photo of a jack-o'-lantern, 1989!": [
        *(320, 1125, 539, 320, 3267, 268, 334, 26152, 17185, 267, 272, 280, 279, 280, 256)
    ],
    "café — naïve ☃  &amp; b": [15304, 2005, 1097, 35689, 563, 1741, 481, 261, 321],
    "A centered satellite photo of annualcrop.": [320, 24584, 10316, 1125, 539, 21698, 526, 9955, 269],
    "a close-up photo of a Band-Aid.": [320, 2660, 268, 705, 1125, 539, 320, 1963, 268, 5182, 269],
    "itap of the 2 dogs' house": [529, 2728, 539, 518, 273, 3255, 262, 1212],
    "Tthis is a photo of healthy lymph node tissue.": [
        *(83, 589, 533, 320, 1125, 539, 3782, 1251, 5306, 24871, 15368, 269)
    ],
    "": [],
}


def test_ids_of_the_released_vocabulary():
    if "JROBUST_CLIP_VOCABULARY" not in os.environ:
        pytest.skip("set JROBUST_CLIP_VOCABULARY to the file bpe_simple_vocab_16e6.txt.gz of openai/CLIP")
    tokenizer = Tokenizer(os.environ["JROBUST_CLIP_VOCABULARY"])
    assert (tokenizer.vocabulary, tokenizer.start, tokenizer.end) == (49408, 49406, 49407)
    rows = tokenizer(list(GOLDEN))
    assert rows.shape == (len(GOLDEN), 77)
    for row, (text, ids) in zip(rows, GOLDEN.items(), strict=True):
        np.testing.assert_array_equal(row, [49406, *ids, 49407, *[0] * (75 - len(ids))], err_msg=text)
        assert tokenizer.decode(row).split() == tokenizer.decode(ids).split()
    assert tokenizer.decode(rows[1]) == "this is a photo of a golden retriever "
