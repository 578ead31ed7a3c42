"""The ten corruptions of Corrupted CIFAR-10 against their definitions; how the set is built, kept and read."""

from __future__ import annotations

import colorsys
import io
import json
import math

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from jrobust.data import biases, corrupted_cifar10, corrupted_cifar10_frost, counters, load
from jrobust.data import corrupted_cifar10_files as files
from jrobust.data import corrupted_cifar10_pixels as pixels
from jrobust.data.corrupted_cifar10_pixels import CORRUPTIONS, corrupt_stack
from jrobust.errors import InputError

ICE = (np.arange(40 * 50 * 3, dtype=np.uint32).reshape(40, 50, 3) * 2654435761 >> 24).astype(np.uint8)
# Mean absolute change in grey levels at severities 1 to 5. The pixels agreed to one grey level with those of
# make_cifar_c.py, run on the same draws, when this was written (but for spatter at 3, where that overflows).
CHANGE = {
    "snow": (11.20, 25.44, 25.50, 38.36, 55.53),
    "frost": (24.95, 36.35, 38.69, 35.66, 36.46),
    "fog": (12.52, 24.28, 30.80, 35.91, 42.51),
    "brightness": (8.29, 17.25, 26.20, 31.64, 38.83),
    "contrast": (14.27, 28.53, 34.27, 39.96, 48.53),
    "spatter": (1.15, 2.66, 6.70, 3.40, 5.51),
    "elastic": (17.06, 15.25, 13.66, 12.64, 10.32),
    "jpeg": (3.90, 4.75, 5.06, 5.61, 5.97),
    "pixelate": (1.39, 2.67, 3.27, 4.89, 6.67),
    "saturate": (35.92, 46.24, 21.49, 29.66, 33.41),
}


def pictures(count: int = 8) -> np.ndarray:
    y, x = np.mgrid[:32, :32]
    waves = [[128 + 90 * np.sin(x / (3 + k) + y / (9 - k) + c) for c in range(3)] for k in range(count)]
    return np.array(waves).transpose(0, 2, 3, 1).astype(np.uint8)


def generators(count: int = 8) -> list[np.random.RandomState]:
    return [np.random.RandomState(counters.bits(0, counters.CIFAR10_TRAIN, i)) for i in range(count)]


def corrupted(images: np.ndarray, name: str, severity: int = 5) -> np.ndarray:
    return corrupt_stack(images, name, generators(len(images)), severity, (ICE,))


def whole(level: int | tuple[int, int, int], count: int = 4) -> np.ndarray:
    return np.broadcast_to(np.uint8(level), (count, 32, 32, 3)).copy()


def test_the_pairs_of_class_and_corruption():
    names = "snow frost fog brightness contrast spatter elastic jpeg pixelate saturate"
    assert " ".join(CORRUPTIONS) == names
    with pytest.raises(InputError, match="did you mean 'frost'"):
        corrupted(pictures(), "forst")
    with pytest.raises(ValueError, match="severity 6"):
        corrupted(pictures(), "jpeg", 6)
    with pytest.raises(ValueError, match="expected uint8"):
        corrupted(pictures()[:, :16], "jpeg")
    with pytest.raises(ValueError, match="textures"):
        corrupt_stack(pictures(), "frost", generators(), 5, (ICE[:32],))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_its_company(name):
    images = pictures()
    together = corrupted(images, name)
    assert together.dtype == np.uint8 and together.shape == images.shape and (together != images).any()
    alone = [corrupt_stack(images[i : i + 1], name, generators()[i : i + 1], 5, (ICE,))[0] for i in range(8)]
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_constants_of_all_severities(name):
    images = pictures().astype(int)
    change = [np.abs(corrupted(pictures(), name, severity) - images).mean() for severity in pixels.SEVERITIES]
    np.testing.assert_allclose(change, CHANGE[name], rtol=0.02)


def test_snow_on_black():
    """Black becomes 0.2 * 0.5, and flakes lie on it and, turned by half, on it again."""
    snowed = corrupted(whole(0, 30), "snow")
    np.testing.assert_array_equal(snowed, snowed[:, ::-1, ::-1])
    assert snowed.min() == 25 and (snowed == snowed[..., :1]).all()
    # a tenth of the pixels of N(0.3, 0.3), interpolated, exceed 0.65; each spreads over 29 pixels below it
    assert 0.02 < (snowed > 25 + 20).mean() < 0.9


def test_zoom_is_of_the_centre_with_corners_on_corners():
    ramp = np.broadcast_to(np.arange(32.0)[:, None], (1, 32, 32))
    result = pixels.zoomed(ramp, 1.25)
    np.testing.assert_allclose(result[0, :, 0], 3 + np.arange(32) * 25 / 31)  # 26 rows from the fourth on
    assert pixels.zoomed(ramp, 2.25).shape == (1, 32, 32)
    np.testing.assert_array_equal(pixels.zoomed(ramp, 1), ramp)


def test_motion_blur_is_one_sided():
    point = np.zeros((3, 40, 40), np.uint8)
    point[:, 5, 20] = 255
    down, right, slanted = pixels.motion_blur(point, 14, 12, [-90.0, 180.0, -45.0])
    weights = np.exp(-(np.arange(29) ** 2) / (2 * 12.0**2))
    trail = np.zeros(40)
    trail[5:34] = 255 * weights / weights.sum()
    np.testing.assert_allclose(down[:, 20], trail, atol=0.51)
    np.testing.assert_array_equal(down[:5], 0)
    np.testing.assert_allclose(right[5, 20:], trail[5:25], atol=0.51)
    assert (slanted[np.arange(5, 15), 20 - np.arange(10)] > 0).all() and slanted.astype(int).sum() > 200
    full = pixels.motion_blur(np.full((1, 9, 9), 200, np.uint8), 14, 12, [-77.0])
    np.testing.assert_array_equal(full, 200)  # border pixels are repeated


def test_snow_by_its_formula():
    image = pictures(1)
    rng = generators(1)[0]
    layer = pixels.zoomed(rng.normal(0.3, 0.3, (1, 32, 32)), 1.25)
    layer = np.where(layer < 0.65, 0, layer)
    layer = pixels.motion_blur(np.uint8(255 * np.minimum(layer, 1)), 14, 12, [rng.uniform(-135, -45)])[0] / 255
    grey = cv2.cvtColor((image[0] / 255).astype(np.float32), cv2.COLOR_RGB2GRAY)
    x = image[0] / 255
    x = 0.8 * x + 0.2 * np.maximum(x, 1.5 * grey[..., None] + 0.5)
    expected = 255 * np.minimum(x + layer[..., None] + np.rot90(layer, 2)[..., None], 1)
    assert (np.floor(expected + 1e-3) - corrupted(image, "snow")[0]).max() <= 1
    assert np.abs(expected - 0.5 - corrupted(image, "snow")[0]).max() < 0.502


def test_frost_is_a_crop_of_the_texture():
    for severity, own, ice in ((5, 0.75, 0.45), (1, 1, 0.2)):
        result = corrupt_stack(pictures(), "frost", generators(), severity, (np.full((60, 40, 3), 200, np.uint8),))
        np.testing.assert_array_equal(result, np.floor(np.minimum(own * pictures() + ice * 200, 255) + 1e-9))
    y, x = np.mgrid[:40, :50]
    places = np.stack([y * 5, x * 5, np.zeros_like(y)], -1).astype(np.uint8)
    result = corrupt_stack(whole(0, 200), "frost", generators(200), 5, (places,))
    corners = result[:, 0, 0].astype(int)
    np.testing.assert_array_equal(np.unique(corners[:, 0]), np.floor(0.45 * 5 * np.arange(8)))  # 0 .. 40 - 32 - 1
    np.testing.assert_array_equal(np.unique(corners[:, 1]), np.floor(0.45 * 5 * np.arange(18)))
    second = corrupt_stack(whole(0, 40), "frost", generators(40), 5, (np.zeros_like(ICE), np.full_like(ICE, 100)))
    assert 5 < (second[:, 0, 0, 0] == 45).sum() < 35


def test_plasma_is_diamond_square_on_a_torus():
    fields = pixels.plasma(generators(2), 1.75)
    np.testing.assert_array_equal(fields.min((1, 2)), 0)
    np.testing.assert_array_equal(fields.max((1, 2)), 1)
    rng, field, step, amplitude = generators(1)[0], np.zeros((32, 32)), 32, 100.0
    while step > 1:
        half = step // 2
        for row, column in ((half, half), (0, half), (half, 0)):  # middles of squares, then of edges
            noise = rng.uniform(-1, 1, (32 // step, 32 // step))
            sides = [(-half, -half), (-half, half), (half, -half), (half, half)]
            if (row, column) != (half, half):
                sides = [(-half, 0), (half, 0), (0, -half), (0, half)]
            for i in range(row, 32, step):
                for j in range(column, 32, step):
                    mean = sum(field[(i + a) % 32, (j + b) % 32] for a, b in sides) / 4
                    field[i, j] = mean + amplitude**2 * noise[i // step, j // step]
        step, amplitude = half, amplitude / 1.75
    field -= field.min()
    np.testing.assert_allclose(fields[0], field / field.max(), atol=1e-12)


def test_fog_by_its_formula():
    x = pictures() / 255
    largest = x.max((1, 2, 3), keepdims=True)
    expected = 255 * (x + 1.5 * pixels.plasma(generators(), 1.75)[..., None]) * largest / (largest + 1.5)
    assert np.abs(expected - 0.5 - corrupted(pictures(), "fog")).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("name, channel, change", [("brightness", 2, (1, 0.3)), ("saturate", 1, (2.5, 0.2))])
def test_brightness_and_saturation_are_those_of_hsv(name, channel, change):
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    image[0, 0] = np.arange(0, 256, 8)[:, None]  # greys, black among them
    result = corrupted(image, name)
    for i in range(4):
        for j in range(32):
            hsv = list(colorsys.rgb_to_hsv(*(image[0, i, j] / 255)))
            hsv[channel] = min(change[0] * hsv[channel] + change[1], 1)
            expected = 255 * np.array(colorsys.hsv_to_rgb(*hsv))
            assert np.abs(expected - 0.5 - result[0, i, j]).max() < 0.5 + 1e-6, (image[0, i, j], result[0, i, j])


def test_contrast_about_the_mean_of_each_channel():
    means = pictures().mean((1, 2), keepdims=True)
    expected = (pictures() - means) * 0.15 + means
    assert np.abs(expected - 0.5 - corrupted(pictures(), "contrast")).max() < 0.5 + 1e-6


def test_mud_by_its_formula():
    rng = generators(1)[0]
    liquid = ndimage.gaussian_filter(rng.normal(0.65, 0.1, (32, 32)), 0.5, mode="nearest")
    mud = ndimage.gaussian_filter((liquid > 0.68).astype(float), 0.6, mode="nearest")
    mud = np.where(mud < 0.8, 0, mud)[..., None]
    assert 0.02 < (mud > 0).mean() < 0.2
    expected = (1 - mud) * 180 + mud * np.array([63, 42, 20])
    assert np.abs(expected - 0.5 - corrupted(whole(180, 1), "spatter")[0]).max() < 0.5 + 1e-6


def test_water_brightens():
    result = corrupted(whole(20, 30), "spatter", 2).astype(int)
    assert (result >= 20).all() and 0.01 < (result > 20).any(-1).mean() < 0.5
    bright = result.max((0, 1, 2)) - 20
    np.testing.assert_allclose(bright / 0.5, [175, 238, 238], atol=2)  # strength 0.5, pale turquoise


def test_elastic_by_opencv_and_scipy():
    """OpenCV interpolates at multiples of 1/32 of a pixel only."""
    assert set(np.unique(corrupted(whole(77), "elastic"))) <= {76, 77}  # a sum of weights may be just below one
    for image, rng, result in zip(pictures(), generators(), corrupted(pictures(), "elastic"), strict=True):
        points = np.float32([[26, 26], [26, 6], [6, 6]])
        matrix = cv2.getAffineTransform(points, points + rng.uniform(-0.96, 0.96, (3, 2)).astype(np.float32))
        turned = cv2.warpAffine(image.astype(np.float32), matrix, (32, 32), borderMode=cv2.BORDER_REFLECT_101)
        right, down = (
            3.2 * ndimage.gaussian_filter(rng.uniform(-1, 1, (32, 32)), 0.96, mode="reflect", truncate=3)
            for _ in range(2)
        )
        y, x = np.mgrid[:32, :32]
        place = [y + down, x + right]
        expected = [ndimage.map_coordinates(turned[..., k], place, order=1, mode="reflect") for k in range(3)]
        assert np.abs(np.stack(expected, -1) - 0.5 - result).max() < 2


def test_borders():
    np.testing.assert_array_equal(pixels.reflect(np.arange(-3, 7), 4), [2, 1, 0, 0, 1, 2, 3, 3, 2, 1])
    np.testing.assert_array_equal(pixels.reflect_101(np.arange(-3, 7), 4), [3, 2, 1, 0, 1, 2, 3, 2, 1, 0])


def test_jpeg_and_pixelate_are_pillow():
    image = pictures(1)[0]
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40)
    np.testing.assert_array_equal(corrupted(image[None], "jpeg")[0], np.asarray(Image.open(file)))
    small = Image.fromarray(image).resize((20, 20), Image.Resampling.BOX)
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(corrupted(image[None], "pixelate")[0], expected)


def cifar(per_class: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(10), per_class)).astype(np.int32)
    return {"image": pictures(1).repeat(10 * per_class, 0), "label": labels}


def built(plain, part="train", ratio=10.0, seed=0, **how):
    frost = corrupted_cifar10_frost.computed()
    return corrupted_cifar10.build(plain, part, ratio=ratio, seed=seed, frost=frost, **how)


@pytest.mark.parametrize("ratio, conflicting", [(0.5, 25), (1.0, 50), (2.0, 100), (5.0, 250)])
def test_counts_of_the_official_sizes(ratio, conflicting):
    label = np.tile(np.arange(10), 5000)
    arrays = {"label": label, "bias": biases.correlated(label, 10, ratio, 0)}
    frost = corrupted_cifar10_frost.computed()
    counts = corrupted_cifar10.describe(arrays, "train", ratio=ratio, seed=0, frost=frost)["counts"]
    table = np.array(counts.pop("class_by_corruption"))
    assert counts == {"images": 50_000, "aligned": 50_000 - 10 * conflicting, "conflicting": 10 * conflicting}
    np.testing.assert_array_equal(np.diag(table), 5000 - conflicting)
    others = table[~np.eye(10, dtype=bool)].reshape(10, 9)
    assert (others.sum(1) == conflicting).all() and (others.max(1) - others.min(1) <= 1).all()


def test_built_alike_whatever_the_workers_and_chunks():
    plain = cifar(30)
    sums = {files.checksum(built(plain, workers=w, chunk=c)) for w, c in ((1, 7), (3, 64), (2, 300))}
    assert len(sums) == 1
    assert files.checksum(built(plain, seed=1)) not in sums and files.checksum(built(plain, ratio=20.0)) not in sums
    test = built(plain, "test")
    table = np.zeros((10, 10), int)
    np.add.at(table, (test["label"], test["bias"]), 1)
    np.testing.assert_array_equal(table, 3)  # every corruption as often as any other: a tenth is aligned


def test_an_image_has_the_corruption_that_its_bias_tells_and_draws_of_its_own():
    plain = cifar(20)
    arrays = built(plain, ratio=50.0)
    ice = corrupted_cifar10_frost.computed().textures
    np.testing.assert_array_equal(arrays["index"], np.arange(200))
    np.testing.assert_array_equal(arrays["label"], plain["label"])
    assert (arrays["bias"] == arrays["label"]).sum() == 100
    for i in range(0, 200, 7):
        rng = np.random.RandomState(counters.bits(0, counters.CIFAR10_TRAIN, i))
        name = CORRUPTIONS[arrays["bias"][i]]
        expected = corrupt_stack(plain["image"][i : i + 1], name, [rng], 5, ice)[0]
        np.testing.assert_array_equal(arrays["images"][i], expected)
    tested = built(plain, "test")
    both = (arrays["bias"] == tested["bias"]) & np.isin(arrays["bias"], (0, 1, 2, 5, 6))  # those that draw
    assert both.any() and all((arrays["images"][both] != tested["images"][both]).any((1, 2, 3)))


@pytest.fixture
def data(layouts):
    """A data folder with 250 training and 50 test images."""
    layouts.cifar10(per_file=50)
    return layouts.root


def opened(data, split="train", **options):
    return load("corrupted_cifar10", split, data, **{"ratio": 10.0, **options})


def test_built_on_the_first_load_and_read_back_later(data, monkeypatch):
    train, validation, test = (opened(data, split) for split in ("train", "validation", "test"))
    assert len(train) + len(validation) == 250 and len(test) == 50
    assert train.bias_names == CORRUPTIONS and train.class_names[0] == "airplane" and train.image_shape == (32, 32, 3)
    manifest = json.loads((data / "corrupted_cifar10" / "10pct-seed0.json").read_text())
    assert manifest["ratio"] == 10 and manifest["seed"] == 0 and manifest["frost"]["kind"] == "computed"
    assert manifest["counts"]["images"] == 250 and "not comparable" in manifest["frost"]["note"]
    monkeypatch.setattr(corrupted_cifar10, "build", lambda *args, **rest: pytest.fail("built again"))
    again = opened(data)
    np.testing.assert_array_equal(again.arrays()["image"], train.arrays()["image"])
    np.testing.assert_array_equal(again.biases, train.biases)
    np.testing.assert_array_equal(
        opened(data, "test", ratio=1.0).arrays()["image"], test.arrays()["image"]
    )  # shared by the ratios
    for file in (data / "cifar-10-batches-bin").iterdir():
        file.unlink()
    assert len(opened(data)) == len(train)
    assert opened(data, image_size=16).image_shape == (16, 16, 3)
    with pytest.raises(InputError, match=r"corrupted_cifar10 was not found .*prepare_data.py corrupted_cifar10"):
        opened(data, ratio=20.0)


def test_validation_is_held_out_of_each_stratum(data):
    everything = opened(data, valid_fraction=0.0)
    train, validation = (opened(data, split, valid_fraction=0.4) for split in ("train", "validation"))
    images = {split: {x.tobytes() for x in s.arrays()["image"]} for split, s in (("t", train), ("v", validation))}
    assert not images["t"] & images["v"] and len(everything) == 250
    assert images["t"] | images["v"] == {x.tobytes() for x in everything.arrays()["image"]}
    conflicting = (everything.biases != everything.labels).sum()
    assert (validation.biases != validation.labels).sum() == round(0.4 * conflicting)
    assert len(validation) == round(0.4 * conflicting) + round(0.4 * (250 - conflicting))
    with pytest.raises(InputError, match="no validation split"):
        opened(data, "validation", valid_fraction=0.0)
    with pytest.raises(InputError, match="ratio is 101"):
        opened(data, ratio=101.0)


def test_damage_is_found(data):
    opened(data)
    path = data / "corrupted_cifar10" / "10pct-seed0.npz"
    content, manifest = path.read_bytes(), path.with_suffix(".json")
    text = manifest.read_text()
    path.write_bytes(content[:400_000] + bytes([content[400_000] ^ 1]) + content[400_001:])
    with pytest.raises(InputError, match=r"(checksum|cannot be read).*have them built again"):
        opened(data)
    path.write_bytes(content[:-5000])
    with pytest.raises(InputError, match=r"cut off or damaged; remove .*10pct-seed0.npz"):
        opened(data)
    path.write_bytes(content)
    manifest.write_text(text.replace(json.loads(text)["sha256"], "0" * 64))
    with pytest.raises(InputError, match="does not have the checksum"):
        opened(data)
    manifest.write_text("{")
    with pytest.raises(InputError, match="no manifest"):
        opened(data)
    manifest.write_text(text.replace('"version": 1', '"version": 0'))
    assert len(opened(data)) > 0 and manifest.read_text() == text  # built again
    manifest.unlink()  # as if it had been stopped between the two files
    assert len(opened(data)) > 0 and manifest.read_text() == text


def test_a_folder_that_cannot_be_written(data):
    (data / "corrupted_cifar10").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*10pct-seed0.npz"):
        opened(data)


def test_photographs_of_frost(data):
    folder = data / "textures"
    with pytest.raises(InputError, match=r"texture folder .* does not exist"):
        opened(data, textures="textures")
    folder.mkdir()
    with pytest.raises(InputError, match="holds no images"):
        opened(data, textures="textures")
    for k in range(6):
        Image.fromarray(np.full((200, 170, 3), 40 * k, np.uint8)).save(folder / f"frost{k + 1}.png")
    source = opened(data, textures="textures")
    assert source.place.rpartition("-frost")[2] != source.place and source.place != opened(data).place
    with open(source.place.replace(".npz", ".json")) as file:
        frost = json.load(file)["frost"]
    assert frost["kind"] == "photographs" and frost["files"] == [f"frost{k}.png" for k in range(1, 6)]
    levels = {int(t[0, 0, 0]) for t in corrupted_cifar10_frost.photographs(folder).textures}
    assert levels == {0, 40, 80, 120, 160}
    assert {t.shape for t in corrupted_cifar10_frost.photographs(folder).textures} == {(40, 34, 3)}
    Image.fromarray(np.zeros((200, 160, 3), np.uint8)).save(folder / "frost3.png")
    with pytest.raises(InputError, match=r"frost3.png has shape .* at least 165"):
        opened(data, textures=str(folder))


def test_severity_is_an_option_with_files_of_its_own(data):
    full, mild = opened(data), opened(data, severity=1)
    np.testing.assert_array_equal(full.biases, mild.biases)
    originals = load("cifar10", "train", data).arrays()["image"].astype(int)
    with np.load(full.place) as strong, np.load(mild.place) as weak:
        change = [np.abs(archive["images"] - originals).mean() for archive in (strong, weak)]
    assert change[0] > 1.5 * change[1] > 1 and full.place != mild.place
    with open(mild.place.replace(".npz", ".json")) as file:
        assert json.load(file)["severity"] == 1
    with pytest.raises(InputError, match="severity is 6: expected 1 to 5"):
        opened(data, severity=6)


def test_computed_ice_has_the_photographs_colours():
    textures = corrupted_cifar10_frost.computed().textures
    assert len(textures) == 5 and len({t.tobytes() for t in textures}) == 5
    np.testing.assert_allclose(textures[0].mean((0, 1)), [78, 149, 166], atol=2)
    np.testing.assert_allclose(textures[4].std((0, 1)), 43, atol=4)


def test_folders_of_dfa_are_written_and_read(data, tmp_path_factory):
    other = tmp_path_factory.mktemp("with_2_under_3_scores")
    written = {split: opened(data, split) for split in ("train", "validation", "test")}
    for source in written.values():
        corrupted_cifar10.export(other / "cifar10c", source, 10.0)
    assert (other / "cifar10c" / "10pct" / "conflict").is_dir() and (other / "cifar10c" / "test" / "0").is_dir()
    for split, source in written.items():
        read = load("corrupted_cifar10", split, other, ratio=10.0)
        assert len(read) == len(source) and read.bias_names == CORRUPTIONS and "cifar10c" in read.place
        both = [zip(s.arrays()["image"], s.labels, s.biases, strict=True) for s in (read, source)]
        found, expected = (sorted((image.tobytes(), label, bias) for image, label, bias in rows) for rows in both)
        assert found == expected
    assert corrupted_cifar10.is_built(other, "train", ratio=10.0, seed=0, severity=5, textures="")
    with pytest.raises(InputError, match=r"ratios in .*: 10"):
        load("corrupted_cifar10", "train", other, ratio=5.0)


def test_bits_are_those_of_the_key():
    first = [counters.bits(*key).random_raw() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))]
    assert len(set(first)) == 5
    assert math.log2(counters.bits(3, 2, 1).random_raw()) < 64
