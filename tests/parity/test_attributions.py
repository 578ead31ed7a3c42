import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import targeted_dombrowski
from jrobust.attributions import agreement, gradients, integrated, localization

torch = pytest.importorskip("torch")

BETA, POINTS, K = 5.0, 20, 7


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def problem(x64):
    """A softplus MLP on 5 x 5 images with 2 channels, for both frameworks."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(50, 24)) / 3, rng.normal(size=24), rng.normal(size=(24, 3)), rng.normal(size=3)]
    images, labels = rng.uniform(size=(4, 5, 5, 2)), np.asarray([0, 2, 1, 1])

    def jax_logits(x, beta=BETA):
        w1, b1, w2, b2 = weights
        return jax.nn.softplus(beta * (x.reshape(x.shape[0], -1) @ w1 + b1)) / beta @ w2 + b2

    def torch_logits(x, beta=BETA):
        w1, b1, w2, b2 = map(torch.tensor, weights)
        hidden = x.reshape(x.shape[0], -1) @ w1 + b1
        return torch.logaddexp(beta * hidden, torch.zeros_like(hidden)) / beta @ w2 + b2

    return jax_logits, torch_logits, images, labels


def torch_ig_logit(logits, x, labels, detach_factor=False):
    """Right Riemann sum of logit gradients, |.| summed over channels, scaled to sum HW."""
    total = 0
    for i in range(1, POINTS + 1):
        score = logits(x * i / POINTS).gather(1, torch.tensor(labels)[:, None]).sum()
        # The gradient with respect to x carries the factor i / m of the chain rule; that at the point does not.
        total = total + torch.autograd.grad(score, x, create_graph=True)[0] / (i / POINTS)
    attribution = (x.detach() if detach_factor else x) * total / POINTS
    maps = attribution.abs().sum(-1).reshape(len(x), -1)
    return attribution, maps / maps.sum(-1, keepdim=True) * maps.shape[-1]


def test_ig_logit(problem):
    jax_logits, torch_logits, images, labels = problem
    attribution, maps = torch_ig_logit(torch_logits, torch.tensor(images, requires_grad=True), labels)
    score = gradients.logit_score(jax_logits, jnp.asarray(labels))
    ours = integrated.integrated_gradients(score, jnp.asarray(images), num_points=POINTS, chunk=6).attribution
    np.testing.assert_allclose(ours, attribution.detach(), rtol=1e-10, atol=1e-12)
    ours = integrated.ig_logit(jax_logits, jnp.asarray(labels), num_points=POINTS)(jnp.asarray(images))
    np.testing.assert_allclose(ours, maps.detach(), rtol=1e-10)


def test_ig_ce(problem):
    jax_logits, torch_logits, images, labels = problem
    x = torch.tensor(images)
    slopes = []
    for i in range(POINTS + 1):
        point = (x * i / POINTS).requires_grad_()
        loss = torch.nn.functional.cross_entropy(torch_logits(point), torch.tensor(labels), reduction="sum")
        slopes.append(torch.autograd.grad(loss, point)[0])
    slopes = torch.stack(slopes)
    attribution = x * ((slopes[1:] + slopes[:-1]) / 2).mean(0)
    maps = attribution.abs().mean(-1).reshape(4, -1)
    maps = maps / maps.sum(-1, keepdim=True) * 25
    ours = integrated.ig_ce(jax_logits, jnp.asarray(labels), num_points=POINTS, chunk=4)(jnp.asarray(images))
    np.testing.assert_allclose(ours, maps, rtol=1e-10)


@pytest.mark.parametrize("detach_factor", [False, True])
def test_direction_of_the_attack_on_attributions(problem, detach_factor):
    jax_logits, torch_logits, images, labels = problem
    x = torch.tensor(images, requires_grad=True)
    _, maps = torch_ig_logit(torch_logits, x, labels, detach_factor)
    top = maps.detach().topk(K).indices
    # The top k of another image, so that the objective is not at a point of symmetry.
    expected = torch.autograd.grad(maps.gather(1, top.flip(0)).sum(), x)[0]

    saliency = integrated.ig_logit(
        jax_logits, jnp.asarray(labels), num_points=POINTS, chunk=6, detach_factor=detach_factor
    )
    np.testing.assert_array_equal(jax.lax.top_k(saliency(jnp.asarray(images)), K)[1], top)
    mass = lambda x: jnp.take_along_axis(saliency(x), jnp.asarray(top.flip(0)), 1).sum()
    ours = jax.jit(jax.grad(mass))(jnp.asarray(images))
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(np.sign(ours), expected.sign().numpy())


def test_targeted_dombrowski(problem):
    jax_logits, torch_logits, images, labels = problem
    mean, std, steps = (0.4, 0.5), (0.2, 0.25), 8
    shift, scale = torch.tensor(mean, dtype=torch.double), torch.tensor(std, dtype=torch.double)
    originals = torch.tensor(images)
    h_target = torch.tensor(np.random.default_rng(1).dirichlet(np.ones(25), 4))

    def normalised_ig(z, beta):
        total = 0
        for i in range(1, POINTS + 1):
            p = torch_logits(z * i / POINTS * scale + shift, beta).softmax(-1)
            total = total + torch.autograd.grad(p.gather(1, torch.tensor(labels)[:, None]).sum(), z, create_graph=True)[
                0
            ] / (i / POINTS)
        maps = (z * total).abs().sum(-1).reshape(4, -1)
        return maps / maps.sum(-1, keepdim=True)

    p_clean = torch_logits(originals, 1000.0).softmax(-1)
    z = ((originals - shift) / scale).requires_grad_()
    adam = torch.optim.Adam([z], lr=0.02)
    for i in range(steps):
        beta = 10.0 * (100.0 / 10.0) ** (i / steps)
        adam.zero_grad()
        p = torch_logits(z * scale + shift, beta).softmax(-1)
        loss = 1e11 * ((normalised_ig(z, beta) - h_target) ** 2).mean(1) + 1e6 * ((p - p_clean) ** 2).mean(1)
        loss.sum().backward()
        adam.step()
        z.data = torch.maximum(torch.minimum(z.data, (1 - shift) / scale), -shift / scale)

    relu = 1000.0  # stands for None in this net
    saliency = lambda x, beta: integrated.ig_probability(
        lambda x: jax_logits(x, relu if beta is None else beta),
        jnp.asarray(labels),
        baseline=jnp.asarray(mean),
        num_points=POINTS,
        unroll=False,
    )(x)
    attack = lambda images: targeted_dombrowski(
        lambda x, beta: jax_logits(x, relu if beta is None else beta),
        saliency,
        images,
        jnp.asarray(h_target) * 25,
        mean=mean,
        std=std,
        num_steps=steps,
        learning_rate=0.02,
    )
    result = jax.jit(attack)(jnp.asarray(images))
    np.testing.assert_allclose(result.adv_images, (z * scale + shift).detach(), atol=1e-7)


def test_cosine_distance(x64):
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 6, 50))
    tu, tv = torch.tensor(u, requires_grad=True), torch.tensor(v)
    expected = 1 - torch.nn.functional.cosine_similarity(tu, tv)
    slope = torch.autograd.grad(expected.sum(), tu)[0]
    np.testing.assert_allclose(agreement.cosine_distance(u, v), expected.detach(), rtol=1e-12)
    ours = jax.grad(lambda u: agreement.cosine_distance(u, jnp.asarray(v)).sum())(jnp.asarray(u))
    np.testing.assert_allclose(ours, slope, rtol=1e-9, atol=1e-14)


# What the released code does with OpenCV and a colour map, against SciPy.


def blobs(seed, sigma, level, size=(60, 80)):
    import scipy.ndimage

    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), sigma)
    return (noise > level * noise.std()).astype(np.uint8) * 255


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.5, 4.0])
@pytest.mark.parametrize("level", [-0.5, 0.3, 1.0])
def test_areas_and_boxes_are_those_of_opencv(sigma, level):
    cv2 = pytest.importorskip("cv2")
    import scipy.ndimage

    for seed in range(8):
        mask = blobs(seed, sigma, level)
        components, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        for i in range(1, count + 1):
            contours, _ = cv2.findContours(
                (components == i).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            assert len(contours) == 1
            assert localization.polygon_area(components == i) == cv2.contourArea(contours[0])
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        areas = np.asarray([cv2.contourArea(contour) for contour in contours])
        rectangles = [cv2.boundingRect(contours[i]) for i in np.flatnonzero(areas == areas.max())]
        ours = localization.bounding_box(mask).tolist()
        assert ours in [[x, y, x + w, y + h] for x, y, w, h in rectangles]


def test_smoothing_is_that_of_opencv():
    cv2 = pytest.importorskip("cv2")
    import scipy.ndimage

    image = np.random.default_rng(0).uniform(size=(30, 40))
    expected = cv2.blur(image, (3, 3), borderType=cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(scipy.ndimage.uniform_filter(image, 3, mode="constant"), expected, atol=1e-12)


def test_resizing_of_activation_maps_is_that_of_opencv_and_torch():
    cv2 = pytest.importorskip("cv2")
    features = np.random.default_rng(0).normal(size=(1, 14, 14, 4)).astype(np.float32)
    ours = localization.class_activation_heatmaps(jnp.asarray(features), jnp.ones((1, 4)), (224, 224))[0]
    small = features[0].mean(-1)
    by_cv2 = cv2.resize(small, (224, 224), interpolation=cv2.INTER_CUBIC)
    by_torch = torch.nn.functional.interpolate(torch.tensor(small)[None, None], size=(224, 224), mode="bicubic")[0, 0]
    for other in (by_cv2, by_torch.numpy()):
        np.testing.assert_allclose(ours, (other - other.min()) / (other.max() - other.min()), atol=2e-5)


def test_grey_levels_stand_for_the_colour_map():
    cv2 = pytest.importorskip("cv2")
    matplotlib = pytest.importorskip("matplotlib")

    values = np.linspace(0, 1, 1001)
    colours = (matplotlib.colormaps["cubehelix"](values)[:, :3] * 255).astype(np.uint8)
    grey = cv2.cvtColor(colours[None], cv2.COLOR_RGB2GRAY)[0].astype(int)
    assert (np.diff(grey) >= 0).all()
    assert np.abs(grey - localization.grey_levels(values)).max() <= 1
