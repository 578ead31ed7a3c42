"""The shapes world: what is where in an image, counts of every cell, captions, and what the seed decides."""

from __future__ import annotations

import numpy as np
import pytest

from jrobust.data import load, shapes
from jrobust.data.shapes_pixels import BACKGROUNDS, COLORS, SHAPES, TEXTURES, bounds, drawn, render
from jrobust.errors import InputError

COLUMN = {name: k for k, name in enumerate(shapes.ATTRIBUTES)}
# what a seed decides, which must never change
ATTRIBUTES_OF_SEED_5 = [[7, 2, 0, 0], [4, 2, 5, 5], [2, 3, 6, 6], [1, 0, 2, 2]]
BOXES_OF_SEED_5 = [[10, 11, 24, 25], [3, 6, 18, 22], [19, 10, 28, 22], [10, 10, 27, 26]]
CAPTION_OF_SEED_5 = "this is a yellow plain triangle with water"


def fails(match: str):
    return pytest.raises(InputError, match=match)


def scene(color: str, texture: str, shape: str, background: str = "stone", **changes):
    values = (
        list(COLORS).index(color),
        TEXTURES.index(texture),
        SHAPES.index(shape),
        list(BACKGROUNDS).index(background),
    )
    still = {
        "center": (0.5, 0.5),
        "angle": 0.0,
        "texture_angle": 0.0,
        "texture_phase": np.zeros(2),
        "tint": np.zeros(3),
    }
    return drawn(np.random.RandomState(0), *values)._replace(**still | {"light": (1.0, 1.0)} | changes)


def test_the_mask_is_the_objects_pixels():
    # a square of side 1.4 radius: 0.7 * 0.25 * 32 = 5.6 pixels to each side of (16, 8)
    image, mask, box = render(scene("red", "plain", "square", center=(0.5, 0.25), radius=0.25), 32)
    expected = np.zeros((32, 32), np.uint8)
    expected[2:14, 10:22] = 1  # from 10.4 to 21.6: of pixel 10 the samples at 10.625 and 10.875 are covered
    expected[[2, 2, 13, 13], [10, 21, 10, 21]] = 0  # a quarter
    np.testing.assert_array_equal(mask, expected)
    assert box.tolist() == [10, 2, 22, 14] and box.dtype == np.float32
    red = np.rint(255 * np.array(COLORS["red"]))
    assert (image[3:13, 11:21] == red).all() and image[5, 5].std() < 5  # stone is grey
    bare = render(scene("red", "plain", "square", center=(0.5, 0.25), radius=0.01), 32)[0]
    np.testing.assert_array_equal(image[:, :10], bare[:, :10])
    np.testing.assert_allclose(image[8, 10], (bare[8, 10].astype(float) + red) / 2, atol=1)


def test_shapes_have_their_areas_and_texture_its_part():
    areas = {"circle": np.pi * 0.85**2, "square": 1.96, "triangle": 0.75 * 3**0.5, "ring": np.pi * (0.81 - 0.25)}
    areas |= {"star": 10 * 0.5 * 0.45 * np.sin(np.pi / 5), "cross": 2 * 1.9 * 0.56 - 0.56**2}
    for shape in SHAPES:
        seen = [
            render(scene("white", "plain", shape, radius=0.4, angle=angle), 128)[1].astype(int) for angle in (0.0, 0.5)
        ]
        area = seen[0].sum() / (0.4 * 128) ** 2
        assert area == pytest.approx(areas.get(shape, area), rel=0.02) and 0.6 < area < 2.4
        assert seen[1].sum() == pytest.approx(seen[0].sum(), rel=0.02)
        assert ((seen[0] != seen[1]).mean() > 0.005) == (shape not in ("circle", "ring"))
        low, high = np.argwhere(seen[0]).min(0), np.argwhere(seen[0]).max(0)
        assert (low >= 0.1 * 128 - 1).all() and (high <= 0.9 * 128).all()
    up = np.argwhere(render(scene("white", "plain", "triangle", radius=0.4), 64)[1])
    assert up[0, 0] == pytest.approx(0.1 * 64, abs=2) and np.ptp(up[up[:, 0] == up[-1, 0], 1]) > 40  # broad at the foot
    right = np.argwhere(render(scene("white", "plain", "triangle", radius=0.4, angle=np.pi / 2), 64)[1])
    assert np.ptp(right[right[:, 1] == right[:, 1].min(), 0]) > 40  # clockwise: the point goes to the right
    for texture, part in [("plain", 0), ("striped", 0.5), ("dotted", 0.25), ("checked", 0.5)]:
        image, mask, _ = render(scene("red", texture, "square", radius=0.5, texture_angle=0.3), 128)
        inside = image[mask == 1][:, 0] / 255
        assert (inside < 0.6).mean() == pytest.approx(part, abs=0.06)


def test_all_about_an_image_fits():
    source = load("shapes", "train", size=256)
    arrays = source.arrays()
    assert {key: (value.dtype, value.shape[1:]) for key, value in arrays.items()} == {
        "image": (np.uint8, (32, 32, 3)),
        "mask": (np.uint8, (32, 32)),
        "box": (np.float32, (4,)),
        "label": (np.int32, ()),
        "bias": (np.int32, ()),
    }
    np.testing.assert_array_equal(arrays["label"], source.labels)
    np.testing.assert_array_equal(arrays["bias"], source.biases)
    assert set(np.unique(arrays["mask"])) == {0, 1}
    for mask, (x0, y0, x1, y1) in zip(arrays["mask"], arrays["box"].astype(int), strict=True):
        assert mask.sum() == mask[y0:y1, x0:x1].sum() > 20
        assert mask[y0, x0:x1].any() and mask[y1 - 1, x0:x1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
    larger = load("shapes", "train", size=2, image_size=64)
    assert larger.image_shape == (64, 64, 3) and larger[1]["image"].shape == (64, 64, 3)
    np.testing.assert_allclose(larger[1]["box"] / 2, source[1]["box"], atol=1)
    assert bounds(np.zeros((3, 3))).tolist() == [0, 0, 0, 0]


def test_attributes_can_be_read_off_the_image():
    train, test = load("shapes", "train", size=512), load("shapes", "test")
    rows = np.arange(128)

    def accuracy(name, features):
        known, asked = features(train.arrays()), features(test.examples(rows))
        nearest = abs(asked[:, None] - known).sum(-1).argmin(1)
        truth = [source.attributes[:, COLUMN[name]] for source in (train, test)]
        return np.mean(truth[0][nearest] == truth[1][rows])

    def brightest(arrays):  # of the object: its texture is darker, of black things lighter
        image, mask = arrays["image"] / 255, arrays["mask"] == 1
        return np.stack([np.median(x[m], 0) for x, m in zip(image, mask, strict=True)])

    def around(arrays):
        image, mask = arrays["image"] / 255, arrays["mask"] == 0
        return np.stack([np.concatenate([x[m].mean(0), x[m].std(0)]) for x, m in zip(image, mask, strict=True)])

    assert accuracy("color", brightest) > 0.85
    assert accuracy("background", around) > 0.85
    assert accuracy("shape", brightest) < 0.3


def test_every_class_of_every_task_has_as_many_images():
    for split, count in [("train", 192), ("validation", 1024), ("test", 1024)]:
        tables = {task: load("shapes", split, task=task, size=192) for task in shapes.TASKS}
        for task, source in tables.items():
            classes = len(source.class_names)
            assert np.bincount(source.labels, minlength=classes).tolist() == [count // classes] * classes
            attributes = source.attributes
            np.testing.assert_array_equal(attributes, tables["shape"].attributes)
            parts = [attributes[:, COLUMN[name]] for name in task.split("_")]
            expected = parts[0] if len(parts) == 1 else parts[0] * len(shapes.ATTRIBUTES[task.split("_")[1]]) + parts[1]
            np.testing.assert_array_equal(source.labels, expected)
        one, other = tables["shape"][7], tables["color_texture"][7]
        np.testing.assert_array_equal(one["image"], other["image"])
        assert "bias" in one and "bias" not in other
    eight = load("shapes", "train", size=8)
    assert sorted(eight.labels) == sorted(eight.biases) == list(range(8))


@pytest.mark.parametrize("task, ratio", [("shape", 5.0), ("color", 0.0), ("texture", 2.0), ("shape", 87.5)])
def test_backgrounds_conflict_at_the_ratio(task, ratio):
    options = {"task": task, "size": 1280}
    source = load("shapes", "train", ratio=ratio, **options)
    conflicting = source.biases != source.labels
    assert (
        source.bias_names == tuple(BACKGROUNDS) and (source.biases == source.attributes[:, COLUMN["background"]]).all()
    )
    for k, count in enumerate(np.bincount(source.labels)):
        assert conflicting[source.labels == k].sum() == round(count * ratio / 100)
    plain = load("shapes", "train", **options)
    np.testing.assert_array_equal(source.attributes[:, :3], plain.attributes[:, :3])
    np.testing.assert_array_equal(source.biases[conflicting], plain.biases[conflicting])
    np.testing.assert_array_equal(
        load("shapes", "test", ratio=ratio, **options).attributes, load("shapes", "test").attributes
    )
    held_out = load("shapes", "validation", ratio=ratio, **options)
    assert (held_out.biases != held_out.labels).mean() == pytest.approx(ratio / 100, abs=0.005)


def test_images_depend_on_seed_split_and_position_alone():
    short, long = load("shapes", "train", size=70, ratio=5.0, seed=5), load("shapes", "train", ratio=5.0, seed=5)
    np.testing.assert_array_equal(short.attributes, long.attributes[:70])
    for i in (69, 0):
        for key, value in short[i].items():
            np.testing.assert_array_equal(value, long.examples([3, i])[key][1])
    np.testing.assert_array_equal(short.arrays()["image"][69], long[69]["image"])
    assert shapes.captions(short) == shapes.captions(long)[:70]
    for other in (load("shapes", "train", size=70, ratio=5.0, seed=6), load("shapes", "test", ratio=5.0, seed=5)):
        assert (other.attributes[:70] != short.attributes).any() and (other[0]["image"] != short[0]["image"]).any()
    assert short.attributes[:4].tolist() == ATTRIBUTES_OF_SEED_5
    assert short.arrays()["box"][:4].tolist() == BOXES_OF_SEED_5
    assert shapes.captions(short)[3] == CAPTION_OF_SEED_5
    with pytest.raises(IndexError):
        short[70]


def test_captions_say_what_is_there_in_known_words():
    source = load("shapes", "train", size=256)
    values = {value: (k, i) for k, names in enumerate(shapes.ATTRIBUTES.values()) for i, value in enumerate(names)}
    texts = {complete: shapes.captions(source, complete=complete) for complete in (True, False)}
    named = np.zeros(4)
    for complete, captions in texts.items():
        for row, caption in zip(source.attributes, captions, strict=True):
            words = caption.split()
            assert set(words) <= set(shapes.WORDS)
            said = dict(values[word] for word in words if word in values)
            assert said and all(row[k] == value for k, value in said.items())
            assert set(said) == set(range(4)) or not complete
            named += [k in said and not complete for k in range(4)]
    assert (abs(named / 256 - 0.8) < 0.08).all()  # 0.75, and 0.25 / 4 by force
    assert len(set(texts[False])) > 200
    assert shapes.captions(source, draw=1) != texts[False] == shapes.captions(source)
    assert len(shapes.WORDS) == len(set(shapes.WORDS)) <= 61 and shapes.VOCABULARY <= 64
    with fails("digits has no captions: expected a split of shapes"):
        shapes.captions(load("digits", "test"))
    with fails("draw of captions is -1: expected 0 to 65535"):
        shapes.captions(source, draw=-1)


def test_tokens_are_words():
    number = {word: k + 1 for k, word in enumerate(shapes.WORDS)}
    start, end = shapes.VOCABULARY - 2, shapes.VOCABULARY - 1
    expected = [[start, *(number[word] for word in ("a", "red", "ring")), end, 0], [start, number["a"], end, 0, 0, 0]]
    assert shapes.tokens(["A red  ring.", "a"], 6).tolist() == expected
    texts = shapes.captions(load("shapes", "test"))
    for task in shapes.TASKS:
        texts += [shapes.TEMPLATES[task].format(name) for name in shapes.class_names(task)]
        texts += [f"This is a photo of a {name}" for name in shapes.class_names(task)]
    rows = shapes.tokens(texts, 16)
    assert rows.dtype == np.int32 and (rows.max(1) == end).all() and len({row.tobytes() for row in rows[-64:]}) == 64
    with fails("unknown word 'squares'.*did you mean 'square'.*'two squares'|unknown word 'two'"):
        shapes.tokens(["two squares"], 16)
    with fails("'a red ring' has 3 words: expected at most 2"):
        shapes.tokens(["a red ring"], 4)


def test_options_of_shapes_out_of_range():
    for options, match in [
        ({"task": "colour"}, "unknown data.options.task 'colour'.*did you mean 'color'"),
        ({"size": 0}, "size is 0: expected the number of training images"),
        ({"ratio": 90.0}, "ratio is 90: expected the percentage of conflicting images, 0 to 87.5"),
        ({"ratio": 5.0, "task": "background"}, "ratio is 5 with task 'background': expected 87.5"),
        ({"ratio": 5.0, "task": "color_shape"}, "ratio is 5 with task 'color_shape': expected 87.5"),
        ({"seed": -1}, "seed -1 is out of range"),
    ]:
        with fails(match):
            load("shapes", "train", **options)
    with fails("unknown task of shapes 'size'"):
        shapes.class_names("size")
