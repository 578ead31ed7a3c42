"""The sets of zero-shot evaluation, the sample of PMG-AFT's tables, and captions that go with images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jrobust.data import TrainBatches, evaluation_batches, from_arrays, load, repeated, shapes
from jrobust.data.captioned import captioned, shapes_tokens
from jrobust.data.registry import DATA_SETS
from jrobust.data.zero_shot_sets import PAPER, SETS, load_set, strided_rows
from jrobust.errors import InputError

COLUMNS = "C10 C100 STL SUN Food Pets Flow DTD EuroS FGVC TinyIN IN Cal101 Cal256 Cars PCAM"
IMAGES = [10000, 10000, 8000, 108754, 25250, 3669, 6149, 1880, 27000, 3333, 10000, 50000, 8677, 30607, 8041, 32768]
SAMPLES = [512, 512, 512, 5632, 1280, 256, 512, 256, 1536, 256, 512, 2560, 512, 1536, 512, 1792]


def fails(match: str):
    return pytest.raises(InputError, match=match)


def numbered(count: int, **kwargs):
    """Return images that are 1 x 1 and told apart by their labels."""
    return from_arrays(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count), **kwargs)


def test_the_sets_are_the_papers_columns_and_the_tasks_of_shapes():
    assert " ".join(entry.column for entry in PAPER.values()) == COLUMNS
    assert list(SETS) == [*PAPER, *(f"shapes:{task}" for task in shapes.TASKS)]
    assert [name for name, entry in PAPER.items() if not entry.image_size] == ["cifar10", "cifar100", "stl10"]
    assert {entry.image_size for entry in PAPER.values()} == {0, 224}
    assert [DATA_SETS[entry.name].counts[entry.split] for entry in PAPER.values()] == IMAGES


def test_sets_are_loaded_by_name(layouts):
    test = layouts.cifar10()["test"]
    source = load_set("cifar10", layouts.root)
    np.testing.assert_array_equal(source.arrays()["image"], test[0])
    layouts.tiny_imagenet()
    source = load_set("tiny_imagenet", layouts.root, fit="squeeze")
    with Image.open(layouts.root / "tiny-imagenet-200/val/images/val_1.JPEG") as file:
        enlarged = np.asarray(file.resize((256, 256), Image.Resampling.BILINEAR))
    of_first_class = source[list(source.labels).index(0)]
    np.testing.assert_array_equal(of_first_class["image"], enlarged[16:240, 16:240])
    source = load_set("shapes:color_shape", seed=3, ratio=87.5)
    np.testing.assert_array_equal(source.labels, load("shapes", "test", task="color_shape", seed=3).labels)
    with fails("unknown zero-shot set 'cifar': .* did you mean 'cifar10'"):
        load_set("cifar", layouts.root)


@pytest.mark.parametrize(("count", "sample"), [*zip(IMAGES, SAMPLES, strict=True)])
def test_the_sample_has_the_size_that_the_tables_show(count, sample):
    assert len(strided_rows(count)) == sample


def test_the_sample_is_whole_batches_from_the_first_on():
    assert strided_rows(23, batch=3, every=2).tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    assert strided_rows(5, batch=9).tolist() == [0, 1, 2, 3, 4]
    with fails("every 0th batch of 256"):
        strided_rows(5, every=0)


def test_captions_go_with_their_images():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    tokens = np.arange(6 * 2 * 3).reshape(6, 2, 3)
    source = captioned(from_arrays(images, [0, 1, 0, 1, 0, 1], ["a", "b"]), tokens)
    assert source.image_shape == (1, 1, 1) and len(source) == 6 and source.class_names == ("a", "b")
    np.testing.assert_array_equal(source[4]["tokens"], tokens[4])
    part = source.examples(np.array([5, 1]))
    np.testing.assert_array_equal(part["tokens"], tokens[[5, 1]])
    np.testing.assert_array_equal(part["image"], images[[5, 1]])
    for whole in (source.arrays(), source.resident()):
        np.testing.assert_array_equal(whole["tokens"], tokens)
        assert whole["tokens"].dtype == np.int32 and set(whole) == {"image", "label", "tokens"}
    batch = next(iter(evaluation_batches(source, 4)))
    np.testing.assert_array_equal(batch["tokens"], tokens[:4])
    for resident in (True, False):
        stream = TrainBatches(source, 3, seed=0, resident=resident)
        batch = next(stream)
        fields = {key: value[batch["index"]] for key, value in stream.resident.items()} if resident else batch
        np.testing.assert_array_equal(fields["tokens"], tokens[batch["index"]])
        stream.close()


def test_captions_and_repetition_in_either_order():
    base = numbered(4, biases=np.array([0, 1, 2, 3]))
    tokens = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    rows = np.array([3, 3, 0])
    inside = repeated(captioned(base, tokens), rows)
    outside = captioned(repeated(base, rows), np.arange(3 * 3).reshape(3, 1, 3))
    for source, expected in ((inside, tokens[rows]), (outside, np.arange(9).reshape(3, 1, 3))):
        resident = source.resident()
        row = resident.get("row", np.arange(3))
        np.testing.assert_array_equal(resident["tokens"][row], expected)
        np.testing.assert_array_equal(resident["label"][row], [3, 3, 0])
        np.testing.assert_array_equal(source.examples([2, 0])["tokens"], expected[[2, 0]])
        assert source.biases is not None and source.biases.tolist() == [3, 3, 0]


def test_native_images_keep_their_captions():
    small = from_arrays(np.zeros((2, 4, 4, 3), np.uint8), [0, 1], image_size=2)
    source = captioned(small, np.ones((2, 1, 3), int))
    assert source.native().image_shape == (4, 4, 3) and source.native()[1]["tokens"].shape == (1, 3)
    assert source.resized(source.native()[0]["image"]).shape == source.image_shape == (2, 2, 3)
    kept = captioned(numbered(2), np.ones((2, 1, 3), int))
    assert kept.native() is kept


def test_tokens_of_shapes_are_those_of_their_captions():
    source = load("shapes", "train", task="color", size=3)
    tokens = shapes_tokens(source, 2, 16)
    assert tokens.shape == (3, 2, 16) and tokens.dtype == np.int32
    for draw in (0, 1):
        np.testing.assert_array_equal(tokens[:, draw], shapes.tokens(shapes.captions(source, draw=draw), 16))
    assert (tokens[:, 0] != tokens[:, 1]).any(-1).all()
    with fails("has [3-9] words: expected at most 2"):
        shapes_tokens(source, 1, 4)
    with fails("0 captions for each image"):
        shapes_tokens(source, 0, 16)
    with fails("arrays has no captions"):
        shapes_tokens(numbered(2), 1, 16)


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        (np.zeros((3, 1, 4), int), r"int64\[3, 1, 4\]: expected integers \[2, D, T\] for arrays train with its 2"),
        (np.zeros((2, 4), int), r"\[2, 4\]"),
        (np.zeros((2, 0, 4), int), r"\[2, 0, 4\]"),
        (np.zeros((2, 1, 4)), "float64"),
        (np.full((2, 1, 4), -1), "lie in -1 .. -1: expected ids"),
    ],
)
def test_tokens_that_do_not_fit(tokens, match):
    with fails(match):
        captioned(numbered(2), tokens)
