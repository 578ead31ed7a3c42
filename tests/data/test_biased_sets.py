"""Data sets with a bias attribute, on tiny trees in the layouts in which the world distributes them."""

from __future__ import annotations

import collections
import json
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
from PIL import Image

from jrobust.data import evaluation_batches, load
from jrobust.data.bar import ACTIONS, seeded
from jrobust.errors import InputError

TRAINING = (326, 520, 163, 336, 317, 279)  # of BAR, in the order of ACTIONS
TEST = (105, 159, 42, 132, 85, 131)
# what a seed moves, which must never change
MOVED = [8, 10, 23, 141, 147, 157]


@pytest.fixture
def layouts(layouts):
    layouts.root /= "a_1_folder_0_1"  # underscores and numbers above what names tell
    return layouts


def fails(match: str):
    return pytest.raises(InputError, match=match)


def cells(source, shape) -> np.ndarray:
    table = np.zeros(shape, int)
    np.add.at(table, (source.labels, source.biases), 1)
    return table


# Folders of DFA


def write_bffhq(layouts, suffix="png") -> None:
    for i in range(12):
        age = i % 2
        layouts.write_image(f"bffhq/0.5pct/align/{age}/0_1_{i}_{age}_{age}.{suffix}")
    layouts.write_image(f"bffhq/0.5pct/conflict/0/20_0_1.{suffix}")
    for i in range(4):
        layouts.write_image(f"bffhq/test/{i}_{i // 2}_{i % 2}.{suffix}", 16, 16)
    layouts.write_image(f"bffhq/valid/0_1_1.{suffix}")


def test_bffhq(layouts, capsys):
    write_bffhq(layouts)
    train, test = load("bffhq", "train", layouts.root), load("bffhq", "test", layouts.root, image_size=8)
    assert cells(train, (2, 2)).tolist() == [[6, 1], [0, 6]] and train.labels[-1] == 0  # the conflicting one is last
    assert cells(test, (2, 2)).tolist() == [[1, 1], [1, 1]]  # not the conflicting ones only
    assert len(test.bias_names) == 2 and test[1]["bias"] == 1 and test[1]["label"] == 0
    assert len(load("bffhq", "validation", layouts.root)) == 1
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and "12 aligned and 1 conflicting images: the published set has 19104 and 96" in notes[0]
    (batch,) = evaluation_batches(test, 6)
    assert batch["conflicting"].tolist() == [False, True, True, False, False, False]
    assert test.native()[0]["image"].shape == (16, 16, 3) and test.native()[3]["bias"] == 1


def test_folders_of_dfa_that_are_not_as_they_should_be(layouts):
    with fails("bffhq was not found .*looked for bffhq/.*prepare_data.py bffhq"):
        layouts.root.mkdir()
        load("bffhq", "train", layouts.root)
    write_bffhq(layouts)
    with fails(r"2pct/align does not exist \(ratios in .*: 0.5\)"):
        load("bffhq", "train", layouts.root, ratio=2.0)
    layouts.write_image("bffhq/0.5pct/align/0/30_0_1.png")
    with fails("30_0_1.png has class 0 and bias 1: expected them equal in align"):
        load("bffhq", "train", layouts.root)
    for name in ("31_0.png", "0_2.png", "31_0_2.png", "31_x_1.png", "31_0_-1.png"):
        image = layouts.root / "bffhq/test" / name
        image.write_bytes(b"")
        with fails(f"{name} does not tell its class and bias: expected a name <id>_<class>_<bias>"):
            load("bffhq", "test", layouts.root)
        image.unlink()


# BAR


def write_bar(layouts, training=(10, 20, 5, 5, 5, 5), test=4, suffix="jpg") -> None:
    for folder, counts in (("train", training), ("test", (test,) * 6)):
        for action, count in zip(ACTIONS, counts, strict=True):
            for i in range(count):
                layouts.write_image(f"BAR/{folder}/{action}_{i}.{suffix}", 6, 9)


def test_the_published_sizes_of_bar():
    aligned, other = (np.repeat(np.arange(6), counts) for counts in (TRAINING, TEST))
    for ratio, moved, tested in ((0, 0, 524), (1, 17, 510), (5, 94, 448)):
        parts = seeded(aligned, other, ratio, 0)
        assert [len(parts[split]) for split in ("train", "test")] == [moved, tested]
        assert sorted(np.concatenate(list(parts.values()))) == list(range(654))
        remaining = np.bincount(other) - np.bincount(other[parts["train"]], minlength=6)
        assert (abs(np.bincount(other[parts["validation"]]) - 0.2 * remaining) < 1).all()
    assert np.bincount(other[seeded(aligned, other, 5, 0)["train"]]).tolist() == [16, 26, 8, 16, 15, 13]
    few, many = (set(seeded(aligned, other, ratio, 0)["train"]) for ratio in (1, 5))
    assert few < many and few != set(seeded(aligned, other, 1, 1)["train"])
    assert sorted(few)[:6] == MOVED
    with fails("ratio 26 takes 42 of 42 test images of 'fishing'"):
        seeded(aligned, other, 26, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_bar_with_images_moved_by_a_seed(layouts, capsys, suffix):
    write_bar(layouts, suffix=suffix)
    options = {"ratio": 10.0, "fit": "squeeze", "image_size": 8}
    train, validation, test = (load("bar", s, layouts.root, **options) for s in ("train", "validation", "test"))
    assert train.class_names[5] == "pole vaulting" and train.bias_names[5:] == ("sky", "elsewhere")
    assert cells(train, (6, 7))[:, 6].tolist() == [1, 2, 0, 0, 0, 0] and len(train) == 53
    assert (train.biases[:50] == train.labels[:50]).all() and len(validation) == 4 and len(test) == 17
    assert set(validation.biases) == set(test.biases) == {6}
    paths = [path for part in (train, validation, test) for path in part.paths]
    assert len(set(paths)) == len(paths) == 74
    assert [train.class_names[k] for k in train.labels] == [path.name.rsplit("_", 1)[0] for path in train.paths]
    assert "BAR/train holds 50 images: the published set has 1941" in capsys.readouterr().err
    assert len(load("bar", "train", layouts.root, ratio=0)) == 50
    assert train.paths == load("bar", "train", layouts.root, **options).paths


def test_a_picture_is_squeezed_or_cut_to_a_square(layouts):
    write_bar(layouts)
    layouts.write_image("BAR/test/racing_1.jpg", 10, 7)
    squeezed, cut = (load("bar", "test", layouts.root, ratio=0, image_size=12, fit=f) for f in ("squeeze", "crop"))
    native = squeezed.native()[0]["image"]
    assert native.shape == (6, 9, 3) and squeezed[0]["image"].shape == cut[0]["image"].shape == (12, 12, 3)
    for source in (squeezed, cut):
        np.testing.assert_array_equal(source.resized(native), source[0]["image"])
    assert {image.shape for image in (squeezed.native()[i]["image"] for i in range(len(squeezed)))} == {
        (6, 9, 3),
        (10, 7, 3),
    }
    whole = Image.fromarray(native)
    resized = [np.asarray(whole.resize(size, Image.Resampling.BILINEAR)) for size in ((12, 12), (18, 12))]
    np.testing.assert_array_equal(squeezed[0]["image"], resized[0])
    np.testing.assert_array_equal(cut[0]["image"], resized[1][:, 3:15])
    with fails("unknown data.options.fit 'stretch': expected one of squeeze, crop"):
        load("bar", "test", layouts.root, fit="stretch")


LISTED = {
    "train": ["train/climbing_0.jpg", "BAR/train/pole vaulting_1.jpg", "test/diving_2.jpg"],
    "test": [f"BAR/test/{action}_{i}.png" for i in (0, 1) for action in ACTIONS],  # the files are .jpg
}


def write_list(layouts, form) -> None:
    base = layouts.root / "BAR"
    if form == "json":
        (base / "dataset0.05.json").write_text(json.dumps(LISTED))
    elif form == "txt":
        layouts.write_text(
            "BAR/dataset0.05.txt", *(f"{split} {path}" for split, paths in LISTED.items() for path in paths)
        )
    else:
        content = {split: [paths, [0] * len(paths)] for split, paths in LISTED.items()}
        with zipfile.ZipFile(base / "dataset0.05.torch", "w") as archive:
            archive.writestr("dataset0/data.pkl", pickle.dumps(content | {"label_info": {"climbing": 3}}, 2))


@pytest.mark.parametrize("form", ["json", "txt", "torch"])
def test_bar_by_a_list(layouts, form):
    write_bar(layouts)
    write_list(layouts, form)
    parts = [load("bar", part, layouts.root, split="listed", ratio=5) for part in ("train", "validation", "test")]
    assert [path.name for path in parts[0].paths] == ["climbing_0.jpg", "pole vaulting_1.jpg", "diving_2.jpg"]
    assert parts[0].labels.tolist() == [0, 5, 1] and parts[0].biases.tolist() == [0, 5, 6]
    assert parts[1].labels.tolist() == [0, 1]  # the first fifth, as IRMCon's program takes it
    assert parts[2].labels.tolist() == [2, 3, 4, 5, 0, 1, 2, 3, 4, 5] and set(parts[2].biases) == {6}
    LISTED_WITH = LISTED | {"valid": ["test/racing_3.jpg"]}
    for path in (layouts.root / "BAR").glob("dataset*"):
        path.unlink()
    (layouts.root / "BAR/dataset0.05.json").write_text(json.dumps(LISTED_WITH))
    assert load("bar", "validation", layouts.root, split="listed", ratio=5).labels.tolist() == [3]
    assert len(load("bar", "test", layouts.root, split="listed", ratio=5)) == 12


def test_what_can_be_wrong_with_bar(layouts):
    layouts.root.mkdir()
    with fails("bar was not found .*looked for BAR/.*prepare_data.py bar"):
        load("bar", "train", layouts.root)
    layouts.write_image("BAR/train/climbing_0.jpg")
    with fails("BAR/test does not exist: expected train/ and test/"):
        load("bar", "train", layouts.root)
    layouts.write_image("BAR/test/vaulting_0.jpg")
    with fails("vaulting_0.jpg is of no known action: expected <action>_<n> with one of climbing"):
        load("bar", "train", layouts.root)
    (layouts.root / "BAR/test/vaulting_0.jpg").unlink()
    write_bar(layouts)
    with fails("unknown data.options.split 'seeds'.*did you mean 'seeded'"):
        load("bar", "train", layouts.root, split="seeds")
    with fails("no list for a ratio of 5 %: expected dataset0.05.json or dataset0.05.txt or dataset0.05.torch"):
        load("bar", "train", layouts.root, split="listed", ratio=5)
    file = layouts.root / "BAR/dataset0.05.json"
    for content, match in [
        ("{", "cannot be read"),
        ("[]", "holds list: expected lists of paths"),
        ('{"train": []}', "lists nothing for 'test'"),
        ('{"train": [], "test": [1]}', "no list of paths for 'test'"),
        ('{"train": [], "tests": []}', "unknown split in .*'tests'.*did you mean 'test'"),
        ('{"train": ["train/diving_99.jpg"], "test": []}', "lists 'train/diving_99.jpg', which is not in"),
        ('{"train": ["../BAR/train/diving_0.jpg"], "test": []}', "which is not in"),
        ('{"train": ["train/diving_0.jpg"], "test": ["BAR/train/diving_0.png"]}', "twice"),
    ]:
        file.write_text(content)
        with fails(match):
            load("bar", "train", layouts.root, split="listed", ratio=5)
    file.unlink()
    (layouts.root / "BAR/dataset0.05.torch").write_bytes(pickle.dumps(1))
    with fails("dataset0.05.torch is no file of torch.save"):
        load("bar", "train", layouts.root, split="listed", ratio=5)


# MetaShift


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def write_metashift(layouts, folder, minority=2, a_class=34, form="pkl") -> None:
    groups, majority = {}, {"cat": "indoor", "dog": "outdoor"}
    draw, number = random.Random(0), iter(range(2_300_000, 2_400_000))
    for label in ("cat", "dog"):
        other = {"indoor": "outdoor", "outdoor": "indoor"}[majority[label]]
        places = {
            "train": [other] * minority + [majority[label]] * (a_class - minority),
            "val_out_of_domain": [other] * 3 + [majority[label]] * 3,
        }
        for split, values in places.items():
            draw.shuffle(values)
            for place in values:
                image = str(next(number))
                layouts.write_image(f"{folder}/{split}/{label}/{image}.jpg")
                groups[image] = [f"{label}({place})"]
    if form == "json":
        (layouts.root / folder / "groups.json").write_text(json.dumps({k: v[0] for k, v in groups.items()}))
    else:
        if form == "inverse":
            inverse = collections.defaultdict(list)
            for image, (group,) in groups.items():
                inverse[group].append(image)
            groups = dict(inverse)
        (layouts.root / folder / "imageID_to_group.pkl").write_bytes(pickle.dumps(groups, 4))


@pytest.mark.parametrize("form", ["pkl", "json", "inverse"])
@pytest.mark.parametrize(
    "folder",
    ["MetaShift-subpopulation-shift", "MetaShift/MetaShift-subpopulation-shift", "MetaShift-subpopulation-shift-6pct"],
)
def test_metashift(layouts, capsys, folder, form):
    write_metashift(layouts, folder, form=form)
    train, test = (load("metashift", s, layouts.root, ratio=6, image_size=4) for s in ("train", "test"))
    assert train.class_names == ("cat", "dog") and train.bias_names == ("indoor", "outdoor")
    assert cells(train, (2, 2)).tolist() == [[32, 2], [2, 32]]
    assert cells(test, (2, 2)).tolist() == [[3, 3], [3, 3]]
    assert test.labels.tolist() == [0] * 6 + [1] * 6
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and "64 aligned and 4 conflicting images: the published set has 1600 and 100" in notes[0]
    assert "6 aligned and 6 conflicting images: the published set has 288 and 288" in notes[1]


def test_what_can_be_wrong_with_metashift(layouts):
    layouts.root.mkdir()
    with fails("metashift was not found .*looked for MetaShift-subpopulation-shift.*prepare_data.py metashift"):
        load("metashift", "train", layouts.root)
    folder = "MetaShift-subpopulation-shift"
    write_metashift(layouts, folder)
    with fails("has no validation split"):
        load("metashift", "validation", layouts.root, ratio=6)
    with fails(
        "has 4 conflicting of 68 training images, 5.9 %, but data.options.ratio is 12: .*NUM_MINORITY_IMG = 102"
    ):
        load("metashift", "train", layouts.root)
    groups = layouts.root / folder / "imageID_to_group.pkl"
    for content, match in [
        (pickle.dumps({"1": ["cat(indoor)"]}), r"jpg is of group None: expected one of cat\(indoor\)"),
        (pickle.dumps({"1": ["cat(sofa)"]}), "for image 1: expected one of cat"),
        (pickle.dumps([1]), "holds list: expected a dict"),
        (pickle.dumps({"1": Malicious()}), "Call.* for image 1: expected one of cat"),
        (b"\x80\x04}", "cannot be read as a pickle"),
    ]:
        groups.write_bytes(content)
        with fails(match):
            load("metashift", "test", layouts.root, ratio=6)
    groups.unlink()
    with fails("no list of groups: expected groups.json or imageID_to_group.pkl"):
        load("metashift", "test", layouts.root, ratio=6)
    (layouts.root / folder / "groups.json").write_text("{")
    with fails("groups.json cannot be read as JSON"):
        load("metashift", "test", layouts.root, ratio=6)
    image = min((layouts.root / folder / "train/dog").iterdir())
    (layouts.root / folder / "groups.json").write_text(json.dumps({image.stem: "cat(indoor)"}))
    for other in (layouts.root / folder / "train/cat").iterdir():
        other.unlink()
    with fails(r"is of group cat\(indoor\): expected one of dog\(indoor\), dog\(outdoor\)"):
        load("metashift", "train", layouts.root, ratio=6)
    (layouts.root / folder / "train/cat").rmdir()
    with fails("train/cat does not exist"):
        load("metashift", "train", layouts.root, ratio=6)
    assert not os.path.exists("made_by_a_pickle")
