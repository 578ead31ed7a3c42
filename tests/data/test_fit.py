"""How pictures become squares: PIL is the reference, in the order of torchvision's Resize and CenterCrop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jrobust.data import from_arrays, load
from jrobust.data.images import Fit, scale_box
from jrobust.errors import InputError


def fails(match: str):
    return pytest.raises(InputError, match=match)


@pytest.mark.parametrize("shape", [(31, 50), (47, 20), (20, 23), (40, 40), (9, 9)])
@pytest.mark.parametrize("resize, filter", [(24, "bilinear"), (0, "bilinear"), (0, "bicubic")])
def test_files_are_resized_by_their_shorter_side_and_cut(layouts, transformed, shape, resize, filter):
    image = layouts.write_image("dtd/test/a/0.png", *shape)
    source = load("dtd", "test", layouts.root, image_size=20, fit="crop", resize=resize, filter=filter)
    expected = transformed(image, resize or 20, 20, filter)
    np.testing.assert_array_equal(source[0]["image"], expected)
    np.testing.assert_array_equal(source.resized(source.native()[0]["image"]), expected)
    squeezed = load("dtd", "test", layouts.root, image_size=20)[0]["image"]  # what it has always been
    np.testing.assert_array_equal(
        squeezed, np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR))
    )


def test_the_protocols_of_pmg_aft_and_of_clip_at_their_size(transformed):
    image = np.random.default_rng(0).integers(0, 256, (1, 100, 64, 3), dtype=np.uint8)
    for shorter, fit in ((256, Fit("crop", 256)), (224, Fit("crop", filter="bicubic"))):
        found = from_arrays(image, [0], image_size=224, fit=fit)[0]["image"]
        np.testing.assert_array_equal(found, transformed(image[0], shorter, 224, fit.filter))


def test_boxes_and_masks_are_cut_with_their_image(layouts):
    mask = np.zeros((1, 20, 40), np.uint8)
    mask[0, 5:10, 20:30] = 1
    pixels = np.repeat(mask[..., None] * 255, 3, -1)
    box, fit = [20, 5, 30, 10], Fit("crop", 40)
    example = from_arrays(pixels, [0], boxes=[box], masks=mask, image_size=30, fit=fit)[0]
    assert example["box"].tolist() == [15, 5, 35, 15]  # twice as large, 25 to the left and 5 up; not clipped
    expected = np.zeros((30, 30))
    expected[5:15, 15:] = 1
    np.testing.assert_array_equal(example["mask"], expected)
    assert example["image"][6:14, 16:].min() > 250 and example["image"][17:].max() == 0
    layouts.tiny_imagenet()
    tiny = load("tiny_imagenet", "train", layouts.root, image_size=224, fit="crop", resize=256)
    assert tiny[2]["box"].tolist() == [2 * 4 - 16, 2 * 4 - 16, 30 * 4 - 16, 40 * 4 - 16]
    assert scale_box(np.array([1.0, 2, 3, 4]), (8, 4), 8, Fit("crop")).tolist() == [-2, 4, 2, 8]


def test_settings_that_cannot_be(layouts):
    layouts.folder("dtd", {"a": 1})

    def read(**options):
        return load("dtd", "test", layouts.root, **options)

    with fails("unknown data.options.fit 'stretch'"):
        read(fit="stretch")
    with fails("unknown data.options.filter 'cubic'.*did you mean 'bicubic'"):
        read(filter="cubic")
    with fails("data.options.resize is 256 with fit 'squeeze': expected the shorter side before the crop"):
        read(resize=256)
    with fails("data.options.resize is -1"):
        read(fit="crop", resize=-1)
    for size in (0, 300):
        with fails(f"data.options.resize is 256 and the image size {size}: expected a square of 1 to 256 pixels"):
            read(fit="crop", resize=256, image_size=size)
    with fails("unknown option of dtd 'fits'.*did you mean 'fit'"):
        read(fits="crop")
