"""Prompts of each data set letter by letter, the lists of ImageNet by their checksums, and what is refused."""

from __future__ import annotations

import hashlib

import pytest

from jrobust.data import class_prompts, imagenet_names, imagenet_subsets, shapes
from jrobust.data.archives import CIFAR10_NAMES
from jrobust.data.class_prompts import PHOTO, prompts
from jrobust.data.prompt_templates import OPENAI_80
from jrobust.errors import InputError
from jrobust.models.clip.tokenizer import Tokenizer

STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
OF_100 = ["aquarium_fish", "lawn_mower", "maple_tree", *(f"thing {k}" for k in range(97))]
# raw names of classes, and what is said of the first ones
WORDED = {
    "cifar10": (
        CIFAR10_NAMES,
        ["This is a photo of a airplane", "This is a photo of a automobile", "This is a photo of a bird"],
    ),
    "cifar100": (
        OF_100,
        ["This is a photo of a aquarium fish", "This is a photo of a lawn mower", "This is a photo of a maple tree"],
    ),
    "stl10": (STL10, ["This is a photo of a airplane", "This is a photo of a bird", "This is a photo of a car"]),
    "sun397": (
        ["/a/abbey", "/a/apartment_building/outdoor", "b/bow_window/indoor", "abbey/inside"],
        [
            "This is a photo of a abbey",
            "This is a photo of a apartment building outdoor",
            "This is a photo of a bow window indoor",
            "This is a photo of a abbey inside",
        ],
    ),
    "food101": (
        ["apple_pie", "French-fries", "macaroni_and_cheese"],
        [
            "A photo of apple pie, a type of food.",
            "A photo of french fries, a type of food.",
            "A photo of macaroni and cheese, a type of food.",
        ],
    ),
    "oxford_pets": (
        ["Abyssinian", "american_bulldog", "Great Pyrenees"],
        [
            "A photo of a abyssinian, a type of pet.",
            "A photo of a american bulldog, a type of pet.",
            "A photo of a great pyrenees, a type of pet.",
        ],
    ),
    "flowers102": (
        ["pink primrose", "hard-leaved pocket orchid", " colt's foot "],
        [
            "A photo of a pink primrose, a type of flower.",
            "A photo of a hard leaved pocket orchid, a type of flower.",
            "A photo of a colt's foot, a type of flower.",
        ],
    ),
    "dtd": (
        ["banded", "polka-dotted", "zigzagged"],
        [
            "A surface with a banded texture.",
            "A surface with a polka dotted texture.",
            "A surface with a zigzagged texture.",
        ],
    ),
    "eurosat": (
        ["AnnualCrop", "Herbaceous Vegetation", "SeaLake"],
        [
            "A centered satellite photo of annualcrop.",
            "A centered satellite photo of herbaceousvegetation.",
            "A centered satellite photo of sealake.",
        ],
    ),
    "fgvc_aircraft": (
        ["707-320", "F/A-18", "A300B4", "Cessna_172", "DC-8"],
        [
            "A photo of a boeing 707-320, a type of aircraft.",
            "A photo of a f/a-18, a type of aircraft.",
            "A photo of a a300b4, a type of aircraft.",
            "A photo of a cessna 172, a type of aircraft.",
            "A photo of a dc-8, a type of aircraft.",
        ],
    ),
    "tiny_imagenet": (
        ["goldfish", "n01641577", "king penguin, Aptenodytes patagonica", "crane (n03126707)"],
        [
            "This is a photo of a goldfish",
            "This is a photo of a bullfrog",
            "This is a photo of a king penguin",
            "This is a photo of a crane",
        ],
    ),
    "imagenet": (
        ["n02119789", "n02012849", "n03126707", "n03594945", "Shih-Tzu"],
        [
            "This is a photo of a kit fox",
            "This is a photo of a crane",
            "This is a photo of a crane",
            "This is a photo of a jeep",
            "This is a photo of a shih tzu",
        ],
    ),
    "caltech101": (
        ["Faces_easy", "Motorbikes", "car_side"],
        ["A photo of a faces easy.", "A photo of a motorbikes.", "A photo of a car side."],
    ),
    "caltech256": (
        ["001.ak47", "251.airplanes-101", "257.clutter", "003.backpack"],
        ["A photo of a ak47.", "A photo of a airplanes 101.", "A photo of a clutter.", "A photo of a backpack."],
    ),
    "stanford_cars": (
        ["Audi S4 Sedan 2012", "Audi S4 Sedan 2007", "Mercedes-Benz 300-Class Convertible 1993", "Ram C/V Van 2012"],
        [
            "A photo of a audi s4 sedan.",
            "A photo of a audi s4 sedan.",
            "A photo of a mercedes benz 300 class convertible.",
            "A photo of a ram c/v van.",
        ],
    ),
    "pcam": (
        ["0", "1"],
        ["Tthis is a photo of healthy lymph node tissue.", "This is a photo of lymph node tumor tissue."],
    ),
}


def fails(match: str):
    return pytest.raises(InputError, match=match)


def sha256(texts) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@pytest.mark.parametrize("name", WORDED)
def test_every_class_is_named_as_published(name):
    names, expected = WORDED[name]
    assert prompts(name, names)[: len(expected)] == [[text] for text in expected]
    assert len(prompts(name, names)) == len(names)


def test_all_sixteen_have_their_words():
    assert list(class_prompts.WORDINGS) == list(WORDED) and len(WORDED) == 16


def test_other_sets_have_the_plain_template_and_all_take_another():
    assert prompts("own", ["Maple_leaf", "Sea/Lake-side"]) == [
        ["This is a photo of a maple leaf"],
        ["This is a photo of a sea lake side"],
    ]
    assert prompts("eurosat", ["SeaLake", "River"], "a map of {}") == [["a map of sealake"], ["a map of river"]]
    assert prompts("own", ["a", "b"], ("{}!", "my {}")) == [["a!", "my a"], ["b!", "my b"]]
    assert prompts("pcam", ["0", "1"], "{}.") == [["healthy lymph node tissue."], ["lymph node tumor tissue."]]
    assert prompts("own", ["{0}"]) == [["This is a photo of a {0}"]]  # a name is no format


def test_tasks_of_shapes_have_their_own_templates():
    assert prompts("shapes", shapes.class_names("color"))[0] == ["a photo of a red shape"]
    assert prompts("shapes:texture", shapes.class_names("texture"))[1] == ["a photo of a striped shape"]
    assert prompts("shapes", shapes.class_names("background"))[0][0].startswith("a photo of a shape on ")
    assert prompts("shapes", shapes.class_names("color_shape"))[1] == ["a photo of a red square"]
    for task in shapes.TASKS:
        texts = [text for (text,) in prompts(f"shapes:{task}", shapes.class_names(task))]
        assert len({row.tobytes() for row in shapes.tokens(texts, 16)}) == len(shapes.class_names(task))
    with fails("no task with the 2 classes red, blue"):
        prompts("shapes", ["red", "blue"])
    with fails("no task with the 8 classes .* expected those of shape"):
        prompts("shapes:shape", shapes.class_names("color"))
    with fails("unknown task of shapes 'colour'.*did you mean 'color'"):
        prompts("shapes:colour", shapes.class_names("color"))


def test_the_templates_and_names_of_clips_authors():
    assert len(OPENAI_80) == 80
    assert sha256(sorted(OPENAI_80)) == "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"
    names = list(imagenet_names.openai_names().values())
    assert sha256(names) == "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"
    assert [names[k] for k in (134, 517, 638, 639)] == [
        "crane bird",
        "construction crane",
        "tights",
        "one-piece bathing suit",
    ]
    of_crane = prompts("imagenet", imagenet_names.wnids(), "openai_80")[134]
    assert len(of_crane) == 80 and "a photo of many crane bird." in of_crane
    ids = imagenet_names.wnids()[134:136]  # part of the classes, by their ids
    assert prompts("imagenet", ids, "openai_80")[0] == of_crane
    lemmas = list(imagenet_names.lemmas().values())  # all, by position
    assert prompts("imagenet", lemmas, "openai_80")[134] == of_crane
    assert "a photo of many b c." in prompts("own", ["b_c"], "openai_80")[0]


def test_imagenets_ids_are_sorted_and_two_pairs_of_classes_share_a_lemma():
    wnids, lemmas = imagenet_names.wnids(), imagenet_names.lemmas()
    assert len(wnids) == 1000 and list(wnids) == sorted(set(wnids)) == list(lemmas)
    shared = {name: [k for k in wnids if lemmas[k] == name] for name in ("crane", "maillot")}
    assert shared == {"crane": ["n02012849", "n03126707"], "maillot": ["n03710637", "n03710721"]}
    assert len(set(lemmas.values())) == 998
    assert len({text for (text,) in prompts("imagenet", wnids)}) == 997  # in lower case the two cardigans, too


@pytest.mark.parametrize(
    ("numbers", "total"), [(imagenet_subsets.IMAGENET_A, 102178), (imagenet_subsets.IMAGENET_R, 86135)]
)
def test_subsets_of_imagenet(numbers, total):
    assert len(numbers) == 200 and sum(numbers) == total and list(numbers) == sorted(set(numbers))
    assert len({*imagenet_subsets.IMAGENET_A} & {*imagenet_subsets.IMAGENET_R}) == 86


def test_objectnets_folders_share_no_class():
    table = imagenet_subsets.OBJECTNET
    numbers = [number for row in table.values() for number in row]
    assert len(table) == 113 and len(numbers) == len(set(numbers)) == 125 and set(numbers) <= set(range(1000))
    assert table["alarm_clock"] == (409, 530) and table["t-shirt"] == (610,) and table["wok"] == (909,)
    assert list(table) == sorted(table)


def test_templates_that_are_none():
    with fails("unknown template 'openai_8': expected one of openai_80; did you mean 'openai_80'"):
        prompts("own", ["a"], "openai_8")
    with fails("'a photo of a cat' has 0 times {}: expected one"):
        prompts("own", ["a"], "a photo of a cat")
    with fails("'{} and {}' has 2 times"):
        prompts("own", ["a"], ["{}", "{} and {}"])


def test_classes_without_words():
    with fails("class 1 of own is called ' _': expected a name"):
        prompts("own", ["a", " _"])
    with fails("classes 0 and 2 of own, 'A-b' and 'a_b', are both 'a b' in prompts"):
        prompts("own", ["A-b", "c", "a_b"])
    with fails("the classes of dtd are numbers, 0, 1, 2: expected names"):
        prompts("dtd", [str(k) for k in range(47)])
    with fails("class n00000001 is none of ImageNet's 1000"):
        prompts("tiny_imagenet", ["n00000001"])
    with fails("2 classes of imagenet for openai_80, such as 'tench'"):
        prompts("imagenet", ["tench", "goldfish"], "openai_80")


def test_classes_that_are_not_those_of_the_labels():
    with fails("9 class names for cifar10: it has 10 classes"):
        prompts("cifar10", CIFAR10_NAMES[1:])
    with fails("201 class names for tiny_imagenet: it has 200 classes"):
        prompts("tiny_imagenet", [f"thing {k}" for k in range(201)])
    with fails("3 class names for own: expected 4, one for each label"):
        prompts("own", ["a", "b", "c"], num_classes=4)
    with fails("0 class names for own: expected at least one"):
        prompts("own", [])


def test_a_prompt_that_is_too_long_is_named_with_the_limit(tmp_path):
    (tmp_path / "merges.txt").write_text("header\na t</w>\n")
    tokenizer = Tokenizer(tmp_path / "merges.txt", context=20)
    (text,) = prompts("own", ["x" * 40])[0]
    with fails("the text 'This is a photo of a xxxx.* the network reads 20"):
        tokenizer([text])
    assert PHOTO.format("x" * 40) == text
