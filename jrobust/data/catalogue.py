"""The data sets there are: in which layouts each is looked for, what is expected of it and where it comes from."""

from __future__ import annotations

import pathlib

from jrobust.data import (
    archives,
    bar,
    boxed,
    catalogue_zero_shot,
    corrupted_cifar10,
    dfa_folders,
    folders,
    metashift,
    shapes,
    shipped,
    tfds_sets,
)
from jrobust.data.entries import FITTING, DataSet, Layout, binary, class_folders, fitted, npz_file, prepared
from jrobust.data.source import Source

__all__ = ["DATA_SETS", "DataSet"]


def _bffhq(name: str, dir: pathlib.Path, split: str, image_size: int, *, ratio: float) -> Source | None:
    # Sizes and the meaning of the numbers are not in the authors' texts; these sizes fit all published results.
    return dfa_folders.open_folders(
        name,
        dir / "bffhq",
        split,
        image_size,
        ratio=ratio,
        class_names=("age 0", "age 1"),
        bias_names=("gender 0", "gender 1"),
        counts={"train": (19_104, 96), "test": (500, 500)} if ratio == 0.5 else {"test": (500, 500)},
    )


DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet(
        (Layout("nothing", lambda name, dir, split, image_size: shipped.digits(split, image_size)),),
        {"train": 1437, "test": 360},
        10,
        (8, 8, 1),
        shipped=True,
    ),
    "colored_digits": DataSet(
        (Layout("nothing", lambda name, dir, *rest, **options: shipped.colored_digits(*rest, **options)),),
        {"train": 1293, "validation": 144, "test": 360},
        10,
        (8, 8, 3),
        shipped=True,
        options={"ratio": 2.0, "seed": 0, "valid_fraction": 0.1, "tint": 0.1, "jitter": 0.01},
    ),
    "shapes": DataSet(
        (Layout("nothing", lambda name, dir, *rest, **options: shapes.shapes(*rest, **options)),),
        {"train": 5120, "validation": shapes.HELD_OUT, "test": shapes.HELD_OUT},
        8,
        (shapes.SIDE, shapes.SIDE, 3),
        shipped=True,
        options={"task": "shape", "size": 5120, "ratio": shapes.UNRELATED, "seed": 0},
        classes_of=lambda task, **_: len(shapes.class_names(task)),
    ),
    "cifar10": DataSet(
        (binary(archives.CIFAR10), prepared(tfds_sets.CIFAR10)),
        {"train": 50_000, "test": 10_000},
        10,
        (32, 32, 3),
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "put it there as it is, or unpack it",
        "cifar10",
    ),
    "corrupted_cifar10": DataSet(
        (
            Layout("cifar10c/<ratio>pct/ of DFA", corrupted_cifar10.open_published),
            Layout("CIFAR-10, to build corrupted_cifar10/ from it", corrupted_cifar10.open_corrupted_cifar10),
        ),
        {"train": 45_000, "validation": 5_000, "test": 10_000},
        10,
        (32, 32, 3),
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "put it there as it is, or unpack it: the corrupted set is built from it",
        "cifar10",
        options={"ratio": 0.5, "seed": 0, "valid_fraction": 0.1, "severity": 5, "textures": ""},
        is_built=corrupted_cifar10.is_built,
    ),
    "cifar100": DataSet(
        (binary(archives.CIFAR100), prepared(tfds_sets.CIFAR100)),
        {"train": 50_000, "test": 10_000},
        100,
        (32, 32, 3),
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        "put it there as it is, or unpack it",
        "cifar100",
    ),
    "svhn": DataSet(
        (Layout("{train,test}_32x32.mat", archives.svhn), npz_file("svhn"), prepared(tfds_sets.SVHN)),
        {"train": 73_257, "test": 26_032},
        10,
        (32, 32, 3),
        (
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        ),
        "put both there as they are",
        "svhn_cropped",
    ),
    "gtsrb": DataSet(
        (
            class_folders("gtsrb"),
            Layout(
                "GTSRB/Final_{Training,Test}/Images/", lambda n, d, *rest: folders.gtsrb_official(n, d / "GTSRB", *rest)
            ),
            npz_file("gtsrb"),
        ),
        {"train": 39_209, "test": 12_630},
        43,
        (0, 0, 3),
        (
            "GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip from "
            "https://benchmark.ini.rub.de/gtsrb_dataset.html",
        ),
        "unpack all three there, so that GTSRB/ and GT-final_test.csv lie in it; "
        "other re-splits (such as 34,799 / 4,410 / 12,630) go into gtsrb.npz",
    ),
    "flower17": DataSet(
        (
            Layout(
                "flower17/ with {train,test}/<class>/, <class>/ or jpg/",
                lambda n, d, *rest: folders.flower17(n, d / "flower17", *rest),
            ),
            npz_file("flower17"),
        ),
        {"train": 1224, "test": 136},
        17,
        (0, 0, 3),
        ("https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz",),
        "unpack it into flower17/, so that flower17/jpg/image_0001.jpg is there",
    ),
    "cub200": DataSet(
        (Layout("CUB_200_2011/", lambda n, d, *rest: boxed.cub200(n, d / "CUB_200_2011", *rest)),),
        {"train": 5994, "test": 5794},
        200,
        (0, 0, 3),
        ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
        "unpack it there, so that CUB_200_2011/images.txt is there",
    ),
    "tiny_imagenet": DataSet(
        (
            fitted(
                "tiny-imagenet-200/",
                lambda n, d, *rest, fit: boxed.tiny_imagenet(n, d / "tiny-imagenet-200", *rest, fit=fit),
            ),
        ),
        {"train": 100_000, "test": 10_000},
        200,
        (64, 64, 3),
        ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
        "unpack it there, so that tiny-imagenet-200/wnids.txt is there",
        options=FITTING,
    ),
    "bar": DataSet(
        (Layout("BAR/{train,test}/", lambda n, d, *rest, **options: bar.open_bar(n, d / "BAR", *rest, **options)),),
        {"train": 1958, "validation": 127, "test": 510},
        6,
        (0, 0, 3),
        ("https://github.com/alinlab/BAR (git clone)",),
        "lay it there as BAR/, so that BAR/train/climbing_0.jpg is there",
        options={"ratio": 1.0, "seed": 0, "split": "seeded", "fit": "squeeze"},
    ),
    "bffhq": DataSet(
        (Layout("bffhq/{<ratio>pct,valid,test}/", _bffhq),),
        {"train": 19_200, "validation": 1000, "test": 1000},
        2,
        (128, 128, 3),
        ("bffhq.zip, linked in https://github.com/kakaoenterprise/Learning-Debiased-Disentangled",),
        "unpack it there, so that bffhq/0.5pct/align/, bffhq/0.5pct/conflict/, bffhq/valid/ and bffhq/test/ are there",
        options={"ratio": 0.5},
    ),
    "metashift": DataSet(
        (Layout(f"{metashift.FOLDER}[-<ratio>pct]/, also in MetaShift/", metashift.open_metashift),),
        {"train": 1700, "test": 576},
        2,
        (0, 0, 3),
        ("https://nlp.stanford.edu/data/gqa/images.zip",),
        "run dataset/subpopulation_shift_cat_dog_indoor_outdoor.py of https://github.com/Weixin-Liang/MetaShift on its "
        "images, with NUM_MINORITY_IMG = 10, 50 or 100 for a ratio of 1, 6 or 12; lay what it writes there as "
        f"{metashift.FOLDER}-<ratio>pct/, with train/, val_out_of_domain/ and imageID_to_group.pkl in it",
        options={"ratio": 12.0, "fit": "squeeze"},
    ),
} | catalogue_zero_shot.DATA_SETS
