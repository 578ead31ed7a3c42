"""The eight corruptions: what is drawn, from which distribution, and what it does to an image."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jrobust.data import corruptions
from jrobust.data.corruptions import CORRUPTIONS, corrupt, corrupted
from jrobust.data.source import from_arrays
from jrobust.errors import InputError

MANY = 2000


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 3 + y / 5 + k) for k in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def many(name: str, image: np.ndarray, **options) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([corrupt(image, name, rng, **options) for _ in range(MANY)])


def drawn(monkeypatch, function: str, name: str) -> list[tuple]:
    """Return the arguments after the image with which a corruption calls a function, over many draws."""
    calls: list[tuple] = []
    monkeypatch.setattr(corruptions, function, lambda image, *rest: calls.append(rest) or image)
    many(name, picture(4, 4))
    return calls


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_shape_fixed_by_the_generator(name):
    image = picture()
    before = image.copy()
    first, again, *others = (corrupt(image, name, np.random.default_rng(seed)) for seed in (1, *range(1, 20)))
    assert first.shape == image.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert any((first != other).any() for other in others)
    np.testing.assert_array_equal(image, before)


def test_names_and_images_are_checked():
    assert " ".join(CORRUPTIONS) == "gaussian salt_pepper cutout dropout rotation perspective jpeg gaussian_blur"
    with pytest.raises(InputError, match="did you mean 'dropout'"):
        corrupt(picture(), "dropouts", np.random.default_rng(0))
    for bad in (picture()[..., :1], picture().astype(np.float32), picture()[0]):
        with pytest.raises(ValueError, match="expected uint8"):
            corrupt(bad, "jpeg", np.random.default_rng(0))


def test_gaussian_noise_is_shared_by_channels_and_its_scale_is_uniform():
    noise = many("gaussian", np.full((24, 24, 3), 128, np.uint8)).astype(int) - 128
    np.testing.assert_array_equal(noise[..., 0], noise[..., 1])
    np.testing.assert_array_equal(noise[..., 0], noise[..., 2])
    assert len(np.unique(noise[0, ..., 0])) > 1  # a draw a pixel
    variance = noise[..., 0].var((1, 2))
    assert abs(noise.mean()) < 0.01
    # E s^2 = 2.55^2 / 3, and rounding adds 1/12, less where s is so small that it takes everything to 0
    assert variance.mean() == pytest.approx(2.55**2 / 3 + 1 / 12, abs=0.06)
    assert 2.4 < math.sqrt(variance.max()) < 2.9
    assert (variance < 0.01).mean() == pytest.approx(0.18 / 2.55, abs=0.03)  # P(|n| > 0.5) is below 0.01 to s = 0.19


def test_gaussian_noise_saturates():
    for level in (0, 255):
        result = many("gaussian", np.full((4, 4, 3), level, np.uint8)).astype(int)
        assert abs(result - level).max() < 15 and (result != level).any()


def test_salt_and_pepper_is_rare_and_grey():
    result = many("salt_pepper", np.broadcast_to(np.uint8([10, 200, 90]), (24, 24, 3)))
    hit = (result != [10, 200, 90]).any(-1)
    assert hit.mean() == pytest.approx(0.001, abs=0.0001)
    grey = result[hit].astype(float)
    assert (grey == grey[:, :1]).all()
    # Beta(1/2, 1/2): mean 1/2, variance 1/8, and 2/pi asin(sqrt(0.1)) = 20.5 % below 0.1
    assert grey.mean() == pytest.approx(127.5, abs=9) and grey.std() == pytest.approx(255 / math.sqrt(8), abs=4)
    assert (grey < 25.5).mean() == pytest.approx(0.205, abs=0.04)


class Centres:
    """Gives the two centres of cutout."""

    def __init__(self, *centres: tuple[float, float]):
        self.centres = centres

    def random(self, shape):
        assert shape == (2, 2)
        return np.array(self.centres)


def test_cutout_is_two_grey_squares_as_wide_as_a_fifth_of_the_height():
    image = np.zeros((50, 100, 3), np.uint8)
    expected = image.copy()
    expected[20:30, 45:55] = 128
    expected[0:4, 96:100] = 128  # centres at (-1, 101), which are out of reach, show how borders clip
    result = corrupt(image, "cutout", Centres((0.5, 0.5), (-0.02, 1.01)))
    np.testing.assert_array_equal(result, expected)
    # corners are truncated: 10.3 - 5 = 5.3 and 15.3
    result = corrupt(image, "cutout", Centres((0.206, 0.5), (0.206, 0.5)))
    np.testing.assert_array_equal(np.flatnonzero(result[:, 50, 0]), np.arange(5, 15))


def test_cutout_centres_are_uniform():
    result = many("cutout", np.zeros((50, 50, 3), np.uint8)) == 128
    # a square covers a point with probability p(x) p(y), p = 0.2 inside and falling to 0.1 at the border: the mean area
    # of two is 2 0.19^2 less the overlap (int p^2)^2 = 0.03667^2
    assert result.mean() == pytest.approx(2 * 0.19**2 - 0.03667**2, abs=0.002)
    share = result[..., 0].mean(0)
    assert share[25, 25] == pytest.approx(1 - 0.96**2, abs=0.02) and share[0, 0] < 0.04


def test_dropout_blacks_out_cells():
    image = np.full((128, 128, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    dropped = np.stack([corrupt(image, "dropout", rng) for _ in range(400)]) == 0
    assert (dropped == dropped[..., :1]).all()
    shares = dropped.mean((1, 2, 3))
    assert shares.mean() == pytest.approx(0.025, abs=0.004)
    assert shares.max() > 0.04
    # the narrowest cells, between changes along an axis, are those of int(0.25 128) = 31 or so cells a side
    columns = [np.diff(np.flatnonzero(np.diff(d[..., 0].any(0).astype(int)))) for d in dropped]
    assert min(gaps.min() for gaps in columns if len(gaps)) == 4
    everywhere = [corrupt(image, "dropout", np.random.default_rng(k), dropout_cells=(0.5, 0.5)) for k in range(20)]
    assert all((x.reshape(64, 2, 64, 2, 3) == x[::2, ::2].reshape(64, 1, 64, 1, 3)).all() for x in everywhere)
    assert any((x == 0).any() for x in everywhere)


def test_dropout_draws_both_sides_and_has_three_cells_at_least():
    uniforms, shapes = [], []

    class Recorder:
        def uniform(self, low, high, size=None):
            uniforms.append((low, high, size))
            return 0.5 if size is None else np.array([0.1, 0.02])

        def random(self, shape):
            shapes.append(shape)
            return np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)

    result = corrupt(picture(40, 60), "dropout", Recorder())
    assert uniforms == [(0, 0.05, None), (0.02, 0.25, 2)] and shapes == [(4, 3)]
    dropped = np.zeros((4, 3), bool)
    dropped.reshape(-1)[:6] = True  # below one half
    np.testing.assert_array_equal((result == 0).all(-1), np.kron(dropped, np.ones((10, 20), bool)))


def test_rotation(monkeypatch):
    image = picture(31, 31)
    np.testing.assert_array_equal(corruptions._rotate(image, 0.0), image)
    np.testing.assert_array_equal(corruptions._rotate(image, 90.0), np.rot90(image))  # about the centre of the pixels
    # bilinear, and the border pixel is repeated in the mirror ("reflect" of scipy)
    angle = math.radians(30)
    y, x = np.mgrid[:31, :31] - 15.0
    place = [y * math.cos(angle) + x * math.sin(angle) + 15, x * math.cos(angle) - y * math.sin(angle) + 15]
    expected = np.stack([ndimage.map_coordinates(c, place, float, 1, "reflect") for c in image.transpose(2, 0, 1)], -1)
    assert np.abs(corruptions._rotate(image, 30.0) - expected).max() < 4  # OpenCV interpolates in 1/32 of a pixel
    angles = np.array(drawn(monkeypatch, "_rotate", "rotation"))
    assert -30 <= angles.min() < -29.8 and 29.8 < angles.max() <= 30
    assert angles.std() == pytest.approx(60 / math.sqrt(12), rel=0.05)


def test_perspective_shows_what_is_between_the_corners():
    image = picture(32, 48)
    show = corruptions._show_between
    np.testing.assert_array_equal(show(image, np.zeros((4, 2))), image)
    np.testing.assert_array_equal(show(image, np.full((4, 2), 0.25)), image[8:24, 12:36].repeat(2, 0).repeat(2, 1))
    left = np.array([[0.5, 0], [0, 0], [0, 0], [0.5, 0]])  # x of the left corners
    np.testing.assert_array_equal(show(image, left), image[:, 24:].repeat(2, 1))
    # the top edge is half as long as the bottom edge, whose length the result has; its end is half black
    corner = show(np.full((32, 32, 3), 200, np.uint8), np.array([[0.5, 0], [0, 0], [0, 0], [0, 0]]))
    assert 90 < corner[0, -1, 0] < 110 and (corner[:, :16] == 200).all()
    assert corner.shape == (32, 32, 3)
    # two corners that have crossed are put in order again
    crossed = np.array([[0.75, 0], [0.75, 0], [0.25, 0], [0.25, 0]])
    np.testing.assert_array_equal(show(image, crossed)[0], image[:, 12:36].repeat(2, 1)[0])
    assert show(image, np.array([[0.5, 0.5]] * 4)).shape == image.shape


def test_perspective_draws_one_scale_an_image(monkeypatch):
    jitters = np.array([jitter for (jitter,) in drawn(monkeypatch, "_show_between", "perspective")])
    assert jitters.shape == (MANY, 4, 2) and jitters.min() >= 0
    squares = (jitters**2).mean((1, 2))
    assert squares.mean() == pytest.approx(0.1**2 + 0.1**2 / 12, rel=0.04)  # E s^2 for U(0.05, 0.15)
    # E (mean of 8 squares)^2 = E s^4 (1 + 2/8), E s^4 = (0.15^5 - 0.05^5) / 0.5: less if each number had its own scale
    assert (squares**2).mean() == pytest.approx((0.15**5 - 0.05**5) / 0.5 * 1.25, rel=0.1)
    assert np.sqrt(squares).min() > 0.05 * 0.3


def test_jpeg_qualities(monkeypatch):
    image = picture()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=15)
    np.testing.assert_array_equal(corruptions.jpeg(image, 15), np.asarray(Image.open(file)))
    assert corruptions.jpeg_quality(0) == 100 and corruptions.jpeg_quality(100) == 2
    qualities = [quality for (quality,) in drawn(monkeypatch, "jpeg", "jpeg")]
    assert sorted(set(qualities)) == list(range(8, 23))
    assert np.bincount(qualities)[8:].min() > MANY / 15 / 2


def test_gaussian_blur(monkeypatch):
    flat = np.full((12, 12, 3), 77, np.uint8)
    np.testing.assert_array_equal(corrupt(flat, "gaussian_blur", np.random.default_rng(0)), flat)
    calls = []
    blur = cv2.GaussianBlur
    monkeypatch.setattr(
        cv2, "GaussianBlur", lambda x, size, **rest: calls.append((size, rest)) or blur(x, size, **rest)
    )
    result = corrupt(picture(), "gaussian_blur", np.random.default_rng(0))
    assert calls[0][1]["borderType"] == cv2.BORDER_REFLECT_101
    sigma = calls[0][1]["sigmaX"]
    radius = calls[0][0][0] // 2
    expected = ndimage.gaussian_filter(
        picture().astype(float), (sigma, sigma, 0), mode="mirror", radius=(radius,) * 2 + (0,)
    )
    assert np.abs(result - expected).max() <= 1
    many("gaussian_blur", picture(4, 4))
    sigmas = np.array([rest["sigmaX"] for _, rest in calls])
    assert 1 <= sigmas.min() < 1.01 and 2.99 < sigmas.max() <= 3
    for (width, height), rest in calls:
        assert rest["sigmaX"] == rest["sigmaY"] and width == height and width % 2 == 1
        whole = int(max(3.3 * rest["sigmaX"], 5))
        assert width in (whole, whole + 1)


def source(count: int = 6, **options):
    images = np.stack([np.roll(picture(24, 24), k, 0) for k in range(count)])
    return from_arrays(images, np.arange(count) % 2, ["a", "b"], biases=np.arange(count) // 3, name="set", **options)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_source_depends_on_seed_name_and_position_only(name):
    plain = source()
    one = corrupted(plain, name, seed=3)
    whole = one.arrays()["image"]
    for i in (4, 0):  # in any order
        example = corrupted(plain, name, seed=3)[i]
        np.testing.assert_array_equal(example["image"], whole[i])
        assert example["label"] == i % 2 and example["bias"] == i // 3
    assert len(one) == 6 and one.image_shape == (24, 24, 3) and one.class_names == ("a", "b")
    np.testing.assert_array_equal(one.biases, plain.biases)
    np.testing.assert_array_equal(one.arrays()["label"], plain.labels)
    if name != "salt_pepper":
        assert (corrupted(plain, name, seed=4).arrays()["image"] != whole).any()
        same = from_arrays(np.stack([picture(24, 24)] * 6), np.zeros(6, int))
        alike = corrupted(same, name).arrays()["image"]
        assert len({image.tobytes() for image in alike}) > 1  # a draw an image


def test_native_is_corrupted_before_and_resized_after_the_source_resizes():
    resized = source(image_size=12)
    native = corrupted(resized, "salt_pepper", seed=5, at="native")
    assert native.image_shape == (12, 12, 3) == native[0]["image"].shape
    cells = {"dropout_cells": (0.5, 0.5)}
    coarse = corrupted(resized, "dropout", at="resized", **cells).arrays()["image"]
    fine = corrupted(resized, "dropout", at="native", **cells).arrays()["image"]
    assert coarse.shape == fine.shape == (6, 12, 12, 3) and (coarse != fine).any()
    black = (coarse == 0).all(-1)
    np.testing.assert_array_equal(np.where(black[..., None], 0, resized.arrays()["image"]), coarse)
    whole = corrupted(source(), "dropout", **cells)  # the same draws, at the size of the files
    np.testing.assert_array_equal(fine[1], resized.resized(whole[1]["image"]))


def test_a_corrupted_source_checks_what_it_is_given():
    with pytest.raises(InputError, match="did you mean 'jpeg'"):
        corrupted(source(), "jpg")
    with pytest.raises(InputError, match="place of corruption 'nativ'"):
        corrupted(source(), "jpeg", at="nativ")
    with pytest.raises(InputError, match="grey"):
        corrupted(from_arrays(np.zeros((2, 8, 8), np.uint8), [0, 1]), "jpeg")
    with pytest.raises(InputError, match="seed -1"):
        corrupted(source(), "jpeg", seed=-1)
    with pytest.raises(InputError, match="dropout_cells"):
        corrupted(source(), "dropout", dropout_cells=(0.3, 0.1))
