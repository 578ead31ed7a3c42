"""Training images that are held out: how many of each class, which, and that nothing else about them changes."""

import numpy as np
import pytest

from jrobust.data import TrainBatches, evaluation_batches, from_arrays, held_out
from jrobust.errors import InputError

SIZES = (40, 26, 26, 9, 2)
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), SIZES))
    images = rng.integers(0, 256, (TOTAL, 4, 4, 1), dtype=np.uint8)
    return from_arrays(images, labels, biases=np.arange(TOTAL) % 5)


def places(source, part):
    """Return which images of the source those of a part are."""
    every, own = (of.arrays()["image"].reshape(len(of), -1) for of in (source, part))
    return (own[:, None] == every).all(-1).argmax(1)


@pytest.mark.parametrize("count", [5, 23, 30, 98])
def test_exactly_so_many_in_proportion_and_disjoint(source, count):
    train, validation = held_out(source, count, seed=1)
    assert (len(train), len(validation)) == (TOTAL - count, count)
    assert (train.split, validation.split, validation.name) == ("train", "validation", source.name)
    counts = np.bincount(validation.labels, minlength=5)
    share = count * np.array(SIZES) / TOTAL
    assert ((counts == np.floor(share)) | (counts == np.ceil(share))).all()
    remainders = share - np.floor(share)
    assert remainders[counts > share].min(initial=1) >= remainders[counts < share].max(initial=0)  # largest up
    assert np.array_equal(np.sort(np.concatenate([places(source, train), places(source, validation)])), range(TOTAL))


def test_images_keep_what_they_are_and_their_order(source):
    for part in held_out(source, 23, seed=1):
        of = places(source, part)
        assert (np.diff(of) > 0).all() and part.class_names == source.class_names
        np.testing.assert_array_equal(part.labels, source.labels[of])
        np.testing.assert_array_equal(part.biases, source.biases[of])
        assert all(part[i]["bias"] == source[int(of[i])]["bias"] for i in (0, 7, len(part) - 1))
        resident = part.resident()
        assert resident["image"] is source.arrays()["image"]
        np.testing.assert_array_equal(resident["row"], of)
    (batch,) = evaluation_batches(part, 23)
    assert batch["index"].tolist() == list(range(23)) and batch["valid"].all()
    train = held_out(source, 23, seed=1).train
    seen = np.concatenate([next(batches)["index"] for batches in [TrainBatches(train, 8, 0, resident=True)] * 10])
    assert sorted(seen) == list(range(80))  # positions in the training source: tables of its length hold them


def test_the_draw_is_of_the_seed_and_of_the_labels_alone(source):
    """The second half was worked out from numpy's frozen generator: another version draws the same."""
    first, again, other = (places(source, held_out(source, 23, seed).validation) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    labels = np.repeat([0, 1, 2], [10, 6, 4])  # shares of 10: 5, 3, 2; nothing to round
    draw = np.random.RandomState(7)
    kept = [np.flatnonzero(labels == k)[draw.permutation(n)[: n // 2]] for k, n in enumerate((10, 6, 4))]
    twenty = from_arrays(np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2), labels)
    np.testing.assert_array_equal(places(twenty, held_out(twenty, 10, seed=7).train), np.sort(np.concatenate(kept)))


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [
        (4, 0, r"data.held_out is 4: expected 5 to 98 of the 103 images of arrays"),
        (99, 0, r"data.held_out is 99: expected 5 to 98"),
        (-1, 0, r"data.held_out is -1: expected 5"),
        (23, -2, r"the seed of data.held_out is -2: expected 0 to 4294967295; set data.held_out_seed"),
    ],
)
def test_what_cannot_be_held_out(source, count, seed, message):
    with pytest.raises(InputError, match=message) as error:
        held_out(source, count, seed)
    assert "\n" not in str(error.value)


def test_a_class_of_one_image():
    with pytest.raises(InputError, match=r"class 'dog' of arrays has one image: data.held_out needs two of each"):
        held_out(from_arrays(np.zeros((3, 2, 2)), [0, 0, 1], ["cat", "dog"]), 2, 0)
