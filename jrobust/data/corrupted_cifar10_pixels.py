"""The ten corruptions of Corrupted CIFAR-10, on stacks of 32 x 32 images.

The constants are those with which Hendrycks and Dietterich made CIFAR-10-C (`make_cifar_c.py` of hendrycks/robustness),
each a list over severities 1 to 5; the data set takes the fifth. Severity 5 is also listed by Learning from Failure
(alinlab/LfF, `corrupted_cifar10_protocol.py`), whose classes are paired with the corruptions as in `CORRUPTIONS`.
What they leave to ImageMagick, OpenCV and scikit-image is computed here from its definition; a pixel may differ from
theirs by a grey level or so. All arithmetic is float64 and elementwise over the stack, so that an image does not depend
on those that it is computed with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from jrobust.data.corruptions import jpeg
from jrobust.errors import unknown

SIDE = 32
SEVERITIES = (1, 2, 3, 4, 5)

Generators = Sequence[np.random.RandomState]
Textures = Sequence[np.ndarray]


def corrupt_stack(
    images: np.ndarray, name: str, rngs: Generators, severity: int = 5, textures: Textures = ()
) -> np.ndarray:
    """Return corrupted copies of CIFAR images: float results are clipped to [0, 1], times 255, truncated.

    Args:
      images: uint8[N, 32, 32, 3].
      name: one of `CORRUPTIONS`.
      rngs: one generator an image; of the kind whose distributions no version of numpy changes.
      severity: 1 to 5.
      textures: for "frost", one or more uint8[h, w, 3] with h, w > 32.

    Raises:
      InputError: no such corruption.
      ValueError: a severity, shape or type that is none of these, or frost without textures.
    """
    if name not in _FUNCTIONS:
        raise unknown("corruption of Corrupted CIFAR-10", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}: expected 1 to 5")
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3) or len(rngs) != len(images):
        raise ValueError(f"{images.dtype}{list(images.shape)} and {len(rngs)} generators: expected uint8[N, 32, 32, 3]")
    if name == "frost":
        return frost(images, rngs, severity, textures)
    result = _FUNCTIONS[name](images, rngs, severity)
    return result if result.dtype == np.uint8 else (np.clip(result, 0, 1) * 255).astype(np.uint8)


def snow(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return x' + m + rot180(m), x' = b x + (1 - b) max(x, 1.5 grey(x) + 0.5), m blurred flakes."""
    mean, deviation, zoom, threshold, radius, sigma, kept = [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ][severity - 1]
    layers = np.stack([rng.normal(mean, deviation, (SIDE, SIDE)) for rng in rngs])
    flakes = zoomed(layers, zoom)
    flakes[flakes < threshold] = 0
    degrees = [rng.uniform(-135, -45) for rng in rngs]
    flakes = motion_blur((np.clip(flakes, 0, 1) * 255).astype(np.uint8), radius, sigma, degrees)
    layer = flakes[..., None] / 255
    x = images / 255
    grey = (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]  # the weights of ITU-R BT.601
    x = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    return x + layer + layer[:, ::-1, ::-1]


def zoomed(layers: np.ndarray, factor: float) -> np.ndarray:
    """Return the centres of float64[N, S, S], of side ceil(S / factor), enlarged bilinearly and cut to S x S."""
    side = layers.shape[1]
    crop = math.ceil(side / factor)
    first = (side - crop) // 2
    large = ndimage.zoom(layers[:, first : first + crop, first : first + crop], (1, factor, factor), order=1)
    first = (large.shape[1] - side) // 2
    return large[:, first : first + side, first : first + side]


def motion_blur(layers: np.ndarray, radius: int, sigma: float, degrees: Sequence[float]) -> np.ndarray:
    """Return uint8[N, H, W] blurred along a line from each pixel, as ImageMagick's `MotionBlurImage` is defined.

    Pixel p becomes the sum over k = 0 .. 2 radius of w_k x[p + round(k (cos a, sin a))], w_k proportional to
    exp(-k^2 / (2 sigma^2)); halves are rounded down, and border pixels repeated.
    """
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2.0 * sigma**2))
    weights /= weights.sum()
    directions = np.array([(math.sin(math.radians(a)), math.cos(math.radians(a))) for a in degrees])
    height, width = layers.shape[1:]
    total = np.zeros(layers.shape)
    stack = np.arange(len(layers))[:, None, None]
    for k, weight in zip(taps, weights, strict=True):
        down, right = np.ceil(k * directions - 0.5).astype(int).T
        rows = np.clip(np.arange(height) + down[:, None], 0, height - 1)
        columns = np.clip(np.arange(width) + right[:, None], 0, width - 1)
        total += weight * layers[stack, rows[:, :, None], columns[:, None, :]]
    return np.floor(total + 0.5).astype(np.uint8)


def frost(images: np.ndarray, rngs: Generators, severity: int, textures: Textures) -> np.ndarray:
    """Return a x + b t, t a random 32 x 32 crop of a random texture."""
    own, ice = [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)][severity - 1]
    if not textures or any(min(t.shape[:2]) <= SIDE for t in textures):
        raise ValueError("frost expects textures of more than 32 x 32 pixels")
    crops = np.empty(images.shape)
    for i, rng in enumerate(rngs):
        texture = textures[rng.randint(len(textures))]
        top, left = rng.randint(texture.shape[0] - SIDE), rng.randint(texture.shape[1] - SIDE)
        crops[i] = texture[top : top + SIDE, left : left + SIDE]
    return np.clip(own * images + ice * crops, 0, 255).astype(np.uint8)


def fog(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return (x + s F) max(x) / (max(x) + s), F a plasma in [0, 1]."""
    strength, decay = [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)][severity - 1]
    x = images / 255
    largest = x.max((1, 2, 3), keepdims=True)
    return (x + strength * plasma(rngs, decay)[..., None]) * largest / (largest + strength)


def plasma(rngs: Generators, decay: float) -> np.ndarray:
    """Return diamond-square fractals float64[N, 32, 32] on a torus, each scaled to [0, 1].

    A new point is the mean of its four neighbours plus w^2 U(-1, 1), w = 100 at first and divided by `decay` after each
    halving of the grid: the amplitude falls by `decay` squared.
    """
    draws = np.stack([rng.uniform(-1, 1, SIDE**2 - 1) for rng in rngs])
    field = np.zeros((len(draws), SIDE, SIDE))
    step, amplitude, used = SIDE, 100.0, 0
    while step >= 2:
        half, count = step // 2, (SIDE // step) ** 2
        noise = [
            draws[:, used + k * count : used + (k + 1) * count].reshape(-1, SIDE // step, SIDE // step)
            for k in range(3)
        ]
        used += 3 * count
        corners = field[:, ::step, ::step]
        square = corners + np.roll(corners, -1, 1)
        field[:, half::step, half::step] = (square + np.roll(square, -1, 2)) / 4 + amplitude**2 * noise[0]
        middles = field[:, half::step, half::step]
        across = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 2)
        down = middles + np.roll(middles, 1, 2) + corners + np.roll(corners, -1, 1)
        field[:, ::step, half::step] = across / 4 + amplitude**2 * noise[1]
        field[:, half::step, ::step] = down / 4 + amplitude**2 * noise[2]
        step, amplitude = half, amplitude / decay
    field -= field.min((1, 2), keepdims=True)
    return field / field.max((1, 2), keepdims=True)


def brightness(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return the images with c added to V of HSV: x V'/V, and grey V' where V = 0."""
    x = images / 255
    value = x.max(-1, keepdims=True)
    brighter = np.minimum(value + [0.05, 0.1, 0.15, 0.2, 0.3][severity - 1], 1)
    black = value == 0
    return np.where(black, brighter, x * (brighter / np.where(black, 1, value)))


def saturate(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return the images with S of HSV replaced by clip(a S + b, 0, 1): V (1 - S' w), w = (V - x) / (V - min x).

    Grey pixels have the hue of red, as in scikit-image: they turn reddish where b > 0.
    """
    factor, offset = [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)][severity - 1]
    x = images / 255
    value = x.max(-1, keepdims=True)
    spread = value - x.min(-1, keepdims=True)
    grey = spread == 0
    weight = np.where(grey, [0.0, 1.0, 1.0], (value - x) / np.where(grey, 1, spread))
    saturation = np.clip(factor * spread / np.where(value == 0, 1, value) + offset, 0, 1)
    return value * (1 - saturation * weight)


def contrast(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return (x - m) c + m, m the mean of each channel over the image."""
    # the sum of integers is exact, so that no order of summation shows in the result
    means = images.sum((1, 2), keepdims=True, dtype=np.int64) / (255 * SIDE * SIDE)
    return (images / 255 - means) * [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1] + means


def spatter(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return the images with drops of water (severities 1 to 3) or of mud: (1 - m) x + m (63, 42, 20) / 255."""
    mean, deviation, sigma, threshold, strength = [
        (0.62, 0.1, 0.7, 0.7, 0.5),
        (0.65, 0.1, 0.8, 0.7, 0.5),
        (0.65, 0.3, 1, 0.69, 0.5),
        (0.65, 0.1, 0.7, 0.69, 0.6),
        (0.65, 0.1, 0.5, 0.68, 0.6),
    ][severity - 1]
    noise = np.stack([rng.normal(mean, deviation, (SIDE, SIDE)) for rng in rngs])
    liquid = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="nearest")
    x = images / 255
    if severity <= 3:
        drops = np.stack([strength * _drops(np.where(layer < threshold, 0, layer)) for layer in liquid])
        return x + drops[..., None] * (np.array([175, 238, 238]) / 255)
    mud = ndimage.gaussian_filter((liquid > threshold).astype(float), (0, strength, strength), mode="nearest")
    mud = np.where(mud < 0.8, 0, mud)[..., None]
    return (1 - mud) * x + mud * (np.array([63, 42, 20]) / 255)


def _drops(liquid: np.ndarray) -> np.ndarray:
    """Return how water lights up, float64[H, W] in [0, 1]: the liquid times an emboss of the distance to its edges."""
    import cv2

    grey = np.clip(liquid * 255, 0, 255).astype(np.uint8)  # values above 1, of severity 3, wrap around in CIFAR-10-C
    distance = cv2.distanceTransform(255 - cv2.Canny(grey, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    light = grey * cv2.blur(cv2.filter2D(distance, cv2.CV_8U, emboss), (3, 3)).astype(float)
    return light / light.max() if light.max() > 0 else light


def elastic(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return the images after a random affine map of three points and a smooth random displacement, bilinear."""
    alpha, sigma, affine = (
        SIDE * c
        for c in [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)][
            severity - 1
        ]
    )
    points = np.array([[26, 26], [26, 6], [6, 6]], float)  # the centre +- a third of the side, x and y
    moved = points + np.stack([rng.uniform(-affine, affine, (3, 2)) for rng in rngs])
    noise = np.stack([rng.uniform(-1, 1, (2, SIDE, SIDE)) for rng in rngs])
    # the map back, from moved points to the original ones: [x, y, 1] @ back
    back = np.linalg.solve(np.concatenate([moved, np.ones((len(moved), 3, 1))], -1), points)
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    place = x[..., None] * back[:, None, None, 0] + y[..., None] * back[:, None, None, 1] + back[:, None, None, 2]
    turned = sample(images / 255, place[..., 1], place[..., 0], reflect_101)
    shift = alpha * ndimage.gaussian_filter(noise, (0, 0, sigma, sigma), mode="reflect", truncate=3.0)
    return sample(turned, y + shift[:, 1], x + shift[:, 0], reflect)


def sample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray, border: Callable) -> np.ndarray:
    """Return float64[N, H, W, C] read bilinearly at float64[N, H, W] rows and columns; `border` maps indices inside."""
    height, width = images.shape[1:3]
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    first, last = (border(top.astype(int) + k, height) for k in (0, 1))
    near, far = (border(left.astype(int) + k, width) for k in (0, 1))
    stack = np.arange(len(images))[:, None, None]
    upper = (1 - right) * images[stack, first, near] + right * images[stack, first, far]
    lower = (1 - right) * images[stack, last, near] + right * images[stack, last, far]
    return (1 - down) * upper + down * lower


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Return indices mirrored at the border, whose pixel is repeated: -1 is 0."""
    index = index % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


def reflect_101(index: np.ndarray, size: int) -> np.ndarray:
    """Return indices mirrored about the border pixel, which is not repeated: -1 is 1."""
    index = index % (2 * size - 2)
    return np.where(index < size, index, 2 * size - 2 - index)


def jpeg_compression(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return the images after JPEG."""
    return np.stack([jpeg(image, [80, 65, 58, 50, 40][severity - 1]) for image in images])


def pixelate(images: np.ndarray, rngs: Generators, severity: int) -> np.ndarray:
    """Return the images reduced and enlarged again, each pixel the mean over its box."""
    small = int(SIDE * [0.95, 0.9, 0.85, 0.75, 0.65][severity - 1])
    box = functools.partial(Image.Image.resize, resample=Image.Resampling.BOX)
    return np.stack([np.asarray(box(box(Image.fromarray(x), (small, small)), (SIDE, SIDE))) for x in images])


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "spatter": spatter,
    "elastic": elastic,
    "jpeg": jpeg_compression,
    "pixelate": pixelate,
    "saturate": saturate,
}
CORRUPTIONS = tuple(_FUNCTIONS)  # the one that goes with class k is the k-th
