"""Tiny copies of the layouts in which data sets are distributed, written with random pixels."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from jrobust.data.archives import CIFAR10_NAMES


class Layouts:
    """Writers of layouts below one folder; each returns what it wrote."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.rng = np.random.default_rng(0)

    def images(self, *shape: int) -> np.ndarray:
        return self.rng.integers(0, 256, shape, dtype=np.uint8)

    def write_image(self, path: str, height: int = 8, width: int = 8) -> np.ndarray:
        image = self.images(height, width, 3)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(self.root / path, "PNG")  # lossless, whatever the suffix says
        return image

    def write_text(self, path: str, *lines: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text("".join(f"{line}\n" for line in lines))

    def folder(self, name: str, counts: dict[str, int], splits=("train", "test"), size: int = 8) -> None:
        for split in splits:
            for class_name, count in counts.items():
                for i in range(count):
                    self.write_image(f"{name}/{split}/{class_name}/{i:03d}.png", size, size)

    def cifar10(self, per_file: int = 7) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Write cifar-10-batches-bin and return images and labels of both splits."""
        folder = self.root / "cifar-10-batches-bin"
        folder.mkdir(parents=True, exist_ok=True)
        written = {}
        for split, files in (("train", [f"data_batch_{k}" for k in range(1, 6)]), ("test", ["test_batch"])):
            images = self.images(per_file * len(files), 32, 32, 3)
            labels = self.rng.integers(0, 10, len(images)).astype(np.uint8)
            for k, file in enumerate(files):
                part = slice(k * per_file, (k + 1) * per_file)
                planes = images[part].transpose(0, 3, 1, 2).reshape(per_file, -1)
                (folder / f"{file}.bin").write_bytes(np.concatenate([labels[part, None], planes], 1).tobytes())
            written[split] = images, labels.astype(np.int32)
        self.write_text("cifar-10-batches-bin/batches.meta.txt", *CIFAR10_NAMES, "")
        return written

    def tfds(self, name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Let TFDS prepare one of its own data sets from these arrays: its writer, its features, no network."""
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=str(self.root), file_format="array_record")
        self.give(builder, splits).download_and_prepare()

    def give(self, builder, splits: dict[str, tuple[np.ndarray, np.ndarray]]):
        """Make a builder of TFDS generate these arrays instead of what it would download."""
        digits = 6 if builder.name == "svhn_cropped" else 5  # as TFDS numbers the ids of the two

        def generate(split, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"id": f"{split}_{i:0{digits}d}", "image": Image.fromarray(image), "label": int(label)}

        builder._split_generators = lambda *args, **kwargs: {s: generate(s, *arrays) for s, arrays in splits.items()}
        return builder

    def cub200(self) -> dict[int, np.ndarray]:
        """Write CUB_200_2011 with two classes and five images of 20 x 10 pixels; return the images by id."""
        names = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "001.Albatross/c.jpg", "002.Auklet/d.jpg"]
        names.append("002.Auklet/e.jpg")
        base = "CUB_200_2011"
        images = {i: self.write_image(f"{base}/images/{n}", height=10, width=20) for i, n in enumerate(names, 1)}
        self.write_text(f"{base}/images.txt", *(f"{i} {n}" for i, n in enumerate(names, 1)))
        self.write_text(f"{base}/image_class_labels.txt", "1 1", "2 1", "3 1", "4 2", "5 2")
        self.write_text(f"{base}/train_test_split.txt", "1 0", "2 1", "3 0", "4 1", "5 1")
        self.write_text(f"{base}/bounding_boxes.txt", *(f"{i} {i}.0 2.0 10.0 5.0" for i in range(1, 6)))
        self.write_text(f"{base}/classes.txt", "1 001.Albatross", "2 002.Auklet")
        return images

    def tiny_imagenet(self) -> None:
        base = "tiny-imagenet-200"
        self.write_text(f"{base}/wnids.txt", "n02", "n01")  # the official list is not sorted either
        self.write_text(f"{base}/words.txt", "n00\tunused", "n01\tgoldfish, Carassius", "n02\tcrane")
        for wnid in ("n01", "n02"):
            for i in range(3):
                self.write_image(f"{base}/train/{wnid}/images/{wnid}_{i}.JPEG", 64, 64)
            rows = (f"{wnid}_{i}.JPEG\t{i}\t2\t30\t40" for i in range(3))
            self.write_text(f"{base}/train/{wnid}/{wnid}_boxes.txt", *rows)
        for i in range(2):
            self.write_image(f"{base}/val/images/val_{i}.JPEG", 64, 64)
        self.write_text(f"{base}/val/val_annotations.txt", "val_0.JPEG\tn02\t0\t1\t2\t3", "val_1.JPEG\tn01\t4\t5\t6\t7")


@pytest.fixture
def layouts(tmp_path) -> Layouts:
    return Layouts(tmp_path)


@pytest.fixture
def arrays():
    """Twenty-three images of three classes, each recognisable by its first pixel."""
    images = np.random.default_rng(1).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(23)
    return images, np.arange(23) % 3


@pytest.fixture
def transformed():
    """Resize and CenterCrop of torchvision, written from their definition with PIL."""

    def transform(image: np.ndarray, shorter: int, side: int, filter: str = "bilinear") -> np.ndarray:
        height, width = image.shape[:2]
        width, height = int(shorter * width / min(height, width)), int(shorter * height / min(height, width))
        left, top = round((width - side) / 2.0), round((height - side) / 2.0)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling[filter.upper()])
        return np.asarray(resized.crop((left, top, left + side, top + side)))

    return transform
