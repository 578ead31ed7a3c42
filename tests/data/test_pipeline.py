from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrobust.data import (
    Augmentation,
    TrainBatches,
    evaluation_batches,
    from_arrays,
    load,
    make_prepare,
    output_shape,
    repeated,
)
from jrobust.errors import InputError

AUGMENTED = {"crop_padding": 2, "flip": True, "jitter": 0.25, "rotation": 10.0}


@pytest.fixture
def source(arrays):
    return from_arrays(*arrays)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def stream(source, count, **arguments):
    batches = TrainBatches(source, **({"batch_size": 5, "seed": 3, "resident": True} | arguments))
    try:
        return [batch["index"].tolist() for batch in take(batches, count)]
    finally:
        batches.close()


def test_epochs_are_different_permutations_and_whole(source):
    assert TrainBatches(source, 5, 0, resident=True).steps_per_epoch == 4
    epochs = np.array(stream(source, 12)).reshape(3, 20)
    for epoch in epochs:
        assert len(set(epoch)) == 20 and set(epoch) <= set(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({tuple(np.sort(epoch)) for epoch in epochs}) > 1  # not always the same images are left out
    assert stream(source, 4, seed=4) != stream(source, 4)
    assert stream(source, 4, seed=2**40 + 1) == stream(source, 4, seed=2**40 + 1)


def test_the_streams_of_both_modes_are_identical(source):
    resident, streaming = (TrainBatches(source, 5, 3, resident=r) for r in (True, False))
    assert resident.resident["image"].shape == (23, 8, 8, 3) and streaming.resident == {}
    for one, other in zip(take(resident, 11), take(streaming, 11), strict=True):
        assert set(one) == {"index"} and one["index"].dtype == np.int32
        np.testing.assert_array_equal(one["index"], other["index"])
        for key in ("image", "label"):
            np.testing.assert_array_equal(resident.resident[key][one["index"]], other[key])
    streaming.close()


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("stop", [0, 3, 4, 9])
def test_a_restored_stream_continues_exactly(source, resident, stop):
    first = TrainBatches(source, 5, 3, resident=resident)
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    expected = take(first, 6)
    second = TrainBatches(source, 5, 3, resident=resident)
    take(second, 2)
    second.set_state(state)
    for one, other in zip(expected, take(second, 6), strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    assert second.get_state() == first.get_state()
    first.close()
    second.close()


def test_a_state_of_another_run_is_refused(source):
    state = TrainBatches(source, 5, 3, resident=True).get_state()
    with pytest.raises(InputError, match="has batch size 5, but this run has 4"):
        TrainBatches(source, 4, 3, resident=True).set_state(state)
    with pytest.raises(InputError, match="has seed 3, but this run has 1"):
        TrainBatches(source, 5, 1, resident=True).set_state(state)
    with pytest.raises(InputError, match="position in the data is -1"):
        TrainBatches(source, 5, 3, resident=True).set_state(state | {"step": -1})
    with pytest.raises(InputError, match="number of training images None"):
        TrainBatches(source, 5, 3, resident=True).set_state({"seed": 3, "batch_size": 5})


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 4), local=st.integers(1, 3), seed=st.integers(0, 2**33), start=st.integers(0, 10**12))
def test_the_parts_of_the_processes_make_the_batch_of_one(count, local, seed, start):
    source = from_arrays(np.zeros((14, 1, 1, 1), np.uint8), np.zeros(14, int))
    whole = TrainBatches(source, count * local, seed, resident=True)
    parts = [
        TrainBatches(source, count * local, seed, resident=True, process_index=p, process_count=count)
        for p in range(count)
    ]
    for batches in (whole, *parts):
        batches.set_state(whole.get_state() | {"step": start})
    for _ in range(3):
        joined = np.concatenate([next(part)["index"] for part in parts])
        np.testing.assert_array_equal(joined, next(whole)["index"])
        assert len(set(joined.tolist())) == count * local  # disjoint


def test_batch_sizes_that_cannot_be(source):
    with pytest.raises(InputError, match="batch size 24 does not fit arrays train with its 23 images"):
        TrainBatches(source, 24, 0, resident=True)
    with pytest.raises(InputError, match="batch size 0 does not fit"):
        TrainBatches(source, 0, 0, resident=True)
    with pytest.raises(InputError, match="batch size 5 cannot be divided among 2 processes"):
        TrainBatches(source, 5, 0, resident=True, process_count=2)


def test_an_undecodable_image_stops_the_stream_with_its_name(layouts):
    layouts.folder("own", {"a": 4}, splits=("train",))
    (layouts.root / "own/train/a/002.png").write_bytes(b"no image")
    batches = TrainBatches(load("own", "train", layouts.root, image_size=8), 4, 0, resident=False)
    with pytest.raises(InputError, match=r"002.png cannot be decoded"):
        next(batches)
    batches.close()


def prepared(source, resident, indices, key, augmentation=AUGMENTED):
    """Images of `indices` as the training step sees them."""
    indices = np.array(indices, np.int32)
    prepare = jax.jit(make_prepare(augmentation))
    if resident:
        return prepare({"index": indices}, source.arrays(), key)
    return prepare({"index": indices, **source.examples(indices)}, {}, key)


def test_prepare_does_not_depend_on_mode_batch_or_order(source):
    key = jax.random.key(7)
    both = prepared(source, True, [3, 8, 20, 8], key)
    assert both["image"].dtype == jnp.float32 and both["image"].shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(both["label"], [0, 2, 2, 2])
    np.testing.assert_array_equal(both["image"][1], both["image"][3])
    for indices, resident in (([3, 8, 20, 8], False), ([8, 20], True), ([20, 1, 8], False)):
        other = prepared(source, resident, indices, key)
        for place, index in enumerate(indices):
            if index in (8, 20):
                np.testing.assert_array_equal(other["image"][place], both["image"][{8: 1, 20: 2}[index]])
    assert (prepared(source, True, [8], jax.random.key(8))["image"] != both["image"][1]).any()


def test_prepare_gives_whole_levels_in_the_unit_interval(source):
    images = np.asarray(prepared(source, True, np.arange(23), jax.random.key(0))["image"])
    levels = images * 255
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)


def test_prepare_without_augmentation_is_a_division(source):
    for augmentation in (None, {}, Augmentation()):
        images = prepared(source, True, [4, 0], jax.random.key(0), augmentation)["image"]
        # not bit for bit: XLA multiplies by the reciprocal
        np.testing.assert_allclose(images, source.arrays()["image"][[4, 0]] / 255, rtol=2e-7)
    white = from_arrays(np.full((1, 2, 2, 1), 255, np.uint8), [0])
    assert (prepared(white, True, [0], jax.random.key(0), None)["image"] == 1).all()


def test_prepare_leaves_out_what_does_not_follow_the_transforms(arrays):
    source = from_arrays(*arrays, boxes=np.ones((23, 4)), biases=np.arange(23) % 2, masks=np.ones((23, 8, 8), bool))
    for resident in (True, False):
        batch = prepared(source, resident, [5, 6], jax.random.key(0))
        assert set(batch) == {"image", "label", "bias", "conflicting", "index"}
        assert batch["bias"].tolist() == [1, 0] and batch["label"].tolist() == [2, 0]
        assert batch["conflicting"].tolist() == [True, False]


def test_copies_of_an_image_are_gathered_from_one_and_augmented_apart(arrays):
    rows = np.array([4, 4, 22, 0, 4, 7])
    source = repeated(from_arrays(*arrays, biases=np.zeros(23, int)), rows)
    key, indices = jax.random.key(2), np.array([4, 2, 0, 1, 5, 3], np.int32)
    prepare = jax.jit(make_prepare(AUGMENTED))
    batch = prepare({"index": indices}, source.resident(), key)
    assert batch["index"].tolist() == indices.tolist()
    assert batch["label"].tolist() == arrays[1][rows[indices]].tolist()
    assert batch["conflicting"].tolist() == (arrays[1][rows[indices]] != 0).tolist()
    assert (np.asarray(batch["image"][0]) != np.asarray(batch["image"][2])).any()  # both are image 4
    streamed = prepare({"index": indices, **source.examples(indices)}, {}, key)
    for name in batch:
        np.testing.assert_array_equal(batch[name], streamed[name])
    plain = jax.jit(make_prepare(None))({"index": indices}, source.resident(), key)["image"]
    np.testing.assert_allclose(plain, arrays[0][rows[indices]] / 255, rtol=2e-7)


def test_a_stream_over_a_repeated_source_counts_its_own_positions(arrays):
    source = repeated(from_arrays(*arrays), np.repeat(np.arange(4), 5))
    for resident in (True, False):
        batches = TrainBatches(source, 5, 0, resident=resident)
        assert batches.steps_per_epoch == 4 and batches.get_state()["examples"] == 20
        epoch = take(batches, 4)
        assert sorted(np.concatenate([batch["index"] for batch in epoch])) == list(range(20))
        if resident:
            assert batches.resident["image"].shape == (23, 8, 8, 3) and len(batches.resident["row"]) == 20
        else:
            np.testing.assert_array_equal(epoch[0]["image"], arrays[0][epoch[0]["index"] // 5])
        batches.close()


def test_evaluation_tells_what_conflicts(arrays):
    images, labels = arrays
    batch = next(evaluation_batches(from_arrays(images, labels, biases=labels[::-1].copy()), 25))
    assert batch["conflicting"].dtype == bool and batch["bias"].dtype == np.int32
    assert batch["conflicting"][:23].tolist() == (labels != labels[::-1]).tolist()
    assert "conflicting" not in next(evaluation_batches(from_arrays(images, labels), 25))


def test_prepare_gives_the_same_when_the_batch_is_spread_over_devices(source):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    indices = np.array([1, 9, 4, 22, 7, 0, 3, 11], np.int32)
    key = jax.random.key(1)
    one = prepared(source, True, indices, key)["image"]
    replicated = jax.device_put(source.arrays(), jax.NamedSharding(mesh, jax.P()))
    spread = jax.jit(make_prepare(AUGMENTED))({"index": jax.device_put(indices, sharding)}, replicated, key)["image"]
    np.testing.assert_array_equal(one, spread)


def test_a_crop_that_does_not_fit_is_refused(source):
    with pytest.raises(InputError, match="crop_size is 9, but the images are 8x8"):
        prepared(source, True, [0], jax.random.key(0), {"crop_size": 9})
    with pytest.raises(InputError, match="crop_size is 9"):
        evaluation_batches(source, 4, crop_size=9)
    assert output_shape((8, 8, 3), {"crop_size": 6}) == (6, 6, 3) and output_shape((8, 9, 3), None) == (8, 9, 3)


def test_evaluation_covers_everything_once_in_order(source, arrays):
    batches = list(evaluation_batches(source, 5))
    assert len(batches) == 5 and all(batch["image"].shape == (5, 8, 8, 3) for batch in batches)
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert valid.tolist() == [True] * 23 + [False] * 2
    index = np.concatenate([batch["index"] for batch in batches])
    assert index[valid].tolist() == list(range(23)) and index.dtype == np.int32
    images = np.concatenate([batch["image"] for batch in batches])[valid]
    np.testing.assert_array_equal(images, arrays[0].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches])[valid], arrays[1])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(0, 50), st.integers(1, 12))
def test_a_limit_spreads_the_examples_evenly(total, limit, batch_size):
    source = from_arrays(np.zeros((total, 1, 1, 1), np.uint8), np.zeros(total, int))
    batches = list(evaluation_batches(source, batch_size, limit or None))
    valid = np.concatenate([batch["valid"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])[valid]
    count = min(limit, total) if limit else total
    assert index.tolist() == [j * total // count for j in range(count)] and len(set(index.tolist())) == count


def test_a_centre_crop_shifts_boxes_and_masks(arrays):
    images, labels = arrays
    source = from_arrays(images, labels, boxes=np.tile([0, 1, 5, 8], (23, 1)), masks=images[..., 0])
    batch = next(evaluation_batches(source, 2, crop_size=4))
    np.testing.assert_array_equal(batch["image"], images[:2, 2:6, 2:6].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(batch["mask"], images[:2, 2:6, 2:6, 0])
    assert batch["box"].tolist() == [[-2, -1, 3, 6]] * 2


def test_evaluation_can_be_left_early(source):
    stream = evaluation_batches(source, 2)
    next(stream)
    stream.close()


def test_every_image_comes_to_every_place():
    source = from_arrays(np.zeros((5, 1, 1, 1), np.uint8), np.zeros(5, int))
    batches = TrainBatches(source, 5, seed=0, resident=True)
    counts = np.zeros((5, 5), int)
    for _ in range(400):
        counts[np.arange(5), next(batches)["index"]] += 1
    batches.close()
    assert counts.min() > 50  # 80 expected
