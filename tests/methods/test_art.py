"""ART against closed forms, golden values and finite differences; see docs/art.md for the sources."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jrobust import loops
from jrobust.attributions.agreement import cosine_distance
from jrobust.methods.art import ART, Attribution, negative_class, pair_hard_loss, top_k_mask, triplet_loss
from jrobust.methods.standard import Standard
from jrobust.models import zoo

_spec = importlib.util.spec_from_file_location("networks", pathlib.Path(__file__).with_name("networks.py"))
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)

EPS, ALPHA = 8 / 255, 1.5 / 255
W = jnp.array([[4.0, 3.0], [-4.0, 3.0]])
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def rolled(monkeypatch, request):
    """Rolled loops over inner steps, as on GPU, where there are no convolutions: they compile in half the time."""
    if "small_cnn" not in request.fixturenames:
        monkeypatch.setattr(loops, "unrolled", bool)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def art(network, **changes):
    fields = {"eps": EPS, "step_size": ALPHA, "num_steps": 3, "attribution_weight": 0.5, "beta": 50.0, "mask_size": 0}
    return ART(network, **(fields | changes))


def as_image(*pixels):
    return jnp.asarray(pixels, jnp.float64).reshape(1, 1, -1, 1)


def l_attr(weights, z):
    """L_attr of a linear model at one image, through the method's own attribute() and vulnerability()."""
    method = art(networks.Toy(networks.linear))
    a = method.attribute(weights, 0, z.reshape(1, 1, -1, 1), jnp.array([0]), None, pixels=True)
    return method.vulnerability(a)[0]


def test_loss_of_orthogonal_gradients():
    assert jax.jit(l_attr)(jnp.eye(2), jnp.array([1.0, 0.0])) == pytest.approx(0.3132617, abs=1e-7)


def test_loss_and_its_derivatives():
    value, (d_w, d_z) = jax.jit(jax.value_and_grad(l_attr, argnums=(0, 1)))(W, jnp.array([3.0, 4.0]))
    assert value == pytest.approx(0.3241776, abs=1e-7)
    np.testing.assert_allclose(d_z, [-0.0567046, 0.0425285], atol=1e-7)
    np.testing.assert_allclose(d_w, [[0.0093031, -0.0124041], [0.0332254, 0.0443005]], atol=1e-7)


def test_the_anchor_is_the_normalised_image():
    method = art(networks.Toy(networks.linear, mean=0.5, std=0.25))

    def loss(x):
        return method.vulnerability(method.attribute(W, 0, x, jnp.array([0]), None, pixels=True))[0]

    value, gradient = jax.value_and_grad(loss)(as_image(0.75, 1.0))
    assert value == pytest.approx(0.3980558, abs=1e-7)
    np.testing.assert_allclose(gradient.ravel(), [-0.7518924, 0.3759462], atol=1e-7)


def test_scale_does_not_matter_but_shift_does():
    z = jnp.array([3.0, 4.0])
    value = float(l_attr(W, z))
    assert l_attr(W.at[0].multiply(7), 3 * z) == pytest.approx(value, abs=1e-12)
    assert abs(l_attr(W, z + jnp.array([2.0, 0.0])) - value) > 1e-2


def test_bounds_of_the_loss():
    assert triplet_loss(jnp.array(0.0), jnp.array(2.0)) == pytest.approx(0.126928, abs=1e-6)
    assert triplet_loss(jnp.array(2.0), jnp.array(0.0)) == pytest.approx(2.126928, abs=1e-6)
    assert triplet_loss(jnp.array(0.7), jnp.array(0.7)) == pytest.approx(np.log(2), abs=1e-12)


def test_a_zero_gradient_row_stays_finite():
    value, gradients = jax.jit(jax.value_and_grad(l_attr, argnums=(0, 1)))(
        jnp.zeros((2, 2)).at[1, 0].set(1), jnp.array([1.0, 2.0])
    )
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[0][0], 0)


@pytest.mark.parametrize(("step_size", "moved", "loss"), [(1.5, -4.5, 0.4117939), (5.0, -8.0, 0.4231485)])
def test_inner_maximisation_of_a_linear_model(step_size, moved, loss):
    method = art(networks.Toy(networks.linear, mean=0.5, std=0.25), step_size=step_size / 255)
    x = as_image(0.75, 1.0)
    attack = jax.jit(lambda x: method.perturb(W, 0, x, jnp.array([0]), jnp.arange(1), KEY, start=x))
    adv, passes = attack(x)
    np.testing.assert_allclose((adv - x).ravel() * 255, [moved, 0], atol=1e-6)
    assert passes == 3
    value = method.vulnerability(method.attribute(W, 0, adv, jnp.array([0]), None, pixels=True))[0]
    assert value == pytest.approx(loss, abs=1e-6)


def quadratic(_, z, beta):
    """f_y = |z|^2 / 2, so g = z; f_n = z1 z2, so g is z with its coordinates swapped."""
    return jnp.stack([jnp.sum(z**2, -1) / 2, z[:, 0] * z[:, 1]], -1)


def test_pair_mining():
    method = art(networks.Toy(quadratic))
    clean, adv = as_image(1.0, 0.0), as_image(0.5**0.5, 0.5**0.5)
    labels = jnp.array([0])
    at = jax.jit(lambda x: method.attribute((), 0, x, labels, None, pixels=False)._replace(batch_stats=None))
    a, b = at(clean), at(adv)
    np.testing.assert_allclose(jax.jit(pair_hard_loss)(a, b), [0.6931472, 0.8502790], atol=1e-7)
    outer = jax.jit(functools.partial(method.attribution_loss, (), 0))
    loss, alignment, _ = outer(clean, adv, labels, jax.random.split(KEY, 1))
    assert loss == pytest.approx(0.7717131, abs=1e-7) and alignment == pytest.approx(1)
    unmined = (method.vulnerability(a)[0] + method.vulnerability(b)[0]) / 2
    assert unmined == pytest.approx(0.5032044, abs=1e-7)


def test_pair_mining_equals_the_matrix_of_all_pairs():
    n, d = 5, 7
    values = jax.random.normal(KEY, (2, 3, n, d), jnp.float64)
    clean, adv = (Attribution(*half, None) for half in values)
    true, other, anchor = (jnp.concatenate([clean[i], adv[i]]) for i in range(3))
    same = jnp.tile(jnp.eye(n, dtype=bool), (2, 2))
    distance = jax.jit(lambda values: cosine_distance(values[None], anchor[:, None]))
    positive, negative = distance(true), distance(other)
    hardest = jnp.where(same, positive, -jnp.inf).max(1), jnp.where(same, negative, jnp.inf).min(1)
    np.testing.assert_allclose(jax.jit(pair_hard_loss)(clean, adv), triplet_loss(*hardest), rtol=1e-12)


def test_negative_class():
    logits = jnp.array([[3.0, 1, 2], [1, 3, 3], [5, 5, 5], [1, 2, 3]])
    labels = jnp.array([0, 0, 0, 1])  # right, wrong with a tie, all tied, wrong
    np.testing.assert_array_equal(negative_class(logits, labels, "runner_up"), [2, 1, 1, 2])
    np.testing.assert_array_equal(negative_class(logits, labels, "argmin"), [1, 1, 1, 0])


def test_mask_has_exactly_k_ones():
    values = jnp.array([[1.0, 2, 2, 2, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(top_k_mask(values, 2), [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(top_k_mask(values, 9), 1)


def mlp_batch(n=6):
    x = jax.random.uniform(jax.random.key(4), (n, 2, 2, 3), jnp.float64)
    return x, jnp.arange(n) % 4, jnp.arange(n)


@pytest.mark.parametrize("objective", ["equation5", "equation2", "equation4_l2", "equation4_cosine"])
def test_perturbations_stay_in_the_ball_and_raise_the_objective(objective):
    outer = "pair_hard" if objective == "equation5" else "adv_only"
    method = art(networks.Toy(networks.mlp, 0.4, 0.3), objective=objective, outer=outer, beta=5.0)
    params = networks.mlp_params(KEY)
    x, labels, index = mlp_batch(32)
    threat_start = jax.vmap(lambda k, v: jnp.clip(v + jax.random.uniform(k, v.shape, v.dtype, -EPS, EPS), 0, 1))(
        jax.random.split(KEY, 32), x
    )
    attack = jax.jit(lambda start: method.perturb(params, 0, x, labels, index, KEY, start=start))
    adv, _ = attack(threat_start)
    assert float(jnp.abs(adv - x).max()) <= EPS + 1e-7 and float(adv.min()) >= 0 and float(adv.max()) <= 1

    @jax.jit
    def value(v):
        at = lambda u: method.attribute(params, 0, u, labels, None, pixels=objective == "equation5")
        return method.vulnerability(at(v), at(x))

    assert float((value(adv) - value(threat_start)).mean()) > 0
    outer_loss = jax.jit(functools.partial(method.attribution_loss, params, 0))(
        x, adv, labels, jax.random.split(KEY, 32)
    )[0]
    if objective != "equation5":
        assert outer_loss == pytest.approx(float(value(adv).mean()), rel=1e-9)


def test_full_mask_equals_no_mask_and_a_small_one_does_not():
    x, labels, index = mlp_batch()
    params = networks.mlp_params(KEY)
    methods = [art(networks.Toy(networks.mlp, 0.4, 0.3), mask_size=k, beta=5.0) for k in (0, 12, 3)]
    found = [jax.jit(method.perturb)(params, 0, x, labels, index, KEY) for method in methods]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert bool((found[0][0] != found[2][0]).any())
    assert [passes for _, passes in found] == [3, 4, 4]  # the mask costs one more pass


def test_on_path_r_only_the_anchor_contributes():
    """Without biases ReLU nets are piecewise linear: the gradients are locally constant."""
    w1, _, w2, _ = networks.mlp_params(KEY)
    params = (w1, jnp.zeros(16), w2, jnp.zeros(4))
    method = art(networks.Toy(networks.relu_mlp))
    x, labels, _ = mlp_batch()
    at = lambda v: method.attribute(params, 0, v, labels, None, pixels=True)
    constant = jax.jit(at)(x)
    full = jax.jit(jax.grad(lambda v: method.vulnerability(at(v)).sum()))(x)
    anchor = jax.jit(jax.grad(lambda v: method.vulnerability(constant._replace(anchor=v.reshape(6, -1))).sum()))(x)
    np.testing.assert_allclose(full, anchor, rtol=1e-12)
    smooth = art(networks.Toy(networks.mlp), beta=5.0)
    at = lambda v: smooth.attribute(params, 0, v, labels, None, pixels=True)
    assert not np.allclose(jax.jit(jax.grad(lambda v: smooth.vulnerability(at(v)).sum()))(x), anchor, rtol=1e-2)


@pytest.mark.parametrize("outer", ["pair_hard", "adv_only"])
def test_outer_gradient_against_finite_differences(outer):
    method = art(networks.Toy(networks.mlp, 0.4, 0.3), beta=3.0, outer=outer)
    params = networks.mlp_params(KEY)
    x, labels, _ = mlp_batch()
    adv = jnp.clip(x + 0.02 * jnp.sign(jnp.sin(50 * x)), 0, 1)

    @jax.jit
    def loss(p):
        return method.attribution_loss(p, 0, x, adv, labels, jax.random.split(KEY, 6))[0]

    gradient = jax.jit(jax.grad(loss))(params)
    direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
    step = 1e-6
    along = lambda s: loss(jax.tree.map(lambda p, d: p + s * d, params, direction))
    numeric = (along(step) - along(-step)) / (2 * step)
    exact = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    assert exact == pytest.approx(float(numeric), rel=1e-5)
    np.testing.assert_array_equal(gradient[3], 0)  # the last bias moves no input gradient


def test_the_perturbation_is_a_constant():
    method = art(networks.Toy(networks.mlp), beta=3.0)
    x, labels, index = mlp_batch()
    total = lambda p, v: method.perturb(p, 0, v, labels, index, KEY)[0].sum()
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(networks.mlp_params(KEY), x)
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(gradients))


def test_reduction_of_channels():
    method = art(networks.Toy(networks.mlp), reduction="absmean")
    x, labels, _ = mlp_batch()
    a = method.attribute(networks.mlp_params(KEY), 0, x - 0.5, labels, None, pixels=True)
    assert a.anchor.shape == (6, 4)
    np.testing.assert_allclose(a.anchor, jnp.abs(x - 0.5).mean(-1).reshape(6, 4), rtol=1e-12)
    assert float(cosine_distance(a.true, a.anchor).max()) <= 1


def test_gradient_spaces():
    method = art(networks.Toy(networks.mlp, 0.4, 0.25))
    x, labels, _ = mlp_batch()
    by_pixel, by_z = (method.attribute(networks.mlp_params(KEY), 0, x, labels, None, pixels=p) for p in (True, False))
    np.testing.assert_allclose(by_z.true, 0.25 * by_pixel.true, rtol=1e-12)


def test_forward_passes_that_move_the_running_statistics():
    x, labels, index = mlp_batch()
    batch = {"image": x, "label": labels, "index": index}
    for update, passes in (("all", 6), ("outer", 2)):
        method = art(networks.Toy(networks.mlp), mask_size=4, bn_update=update, beta=5.0)
        _, (state, _metrics) = jax.jit(method.loss)(networks.mlp_params(KEY), 0, batch, KEY)
        assert state == passes
    method = art(networks.Toy(networks.mlp), mask_size=4, inner_cross_entropy=True, beta=5.0)
    assert jax.jit(method.loss)(networks.mlp_params(KEY), 0, batch, KEY)[1][0] == 9


def test_total_is_cross_entropy_plus_weighted_attribution():
    x, labels, index = mlp_batch()
    batch = {"image": x, "label": labels, "index": index}
    method = art(networks.Toy(networks.mlp), attribution_weight=0.3, beta=5.0)
    loss, (_, metrics) = jax.jit(method.loss)(networks.mlp_params(KEY), 0, batch, KEY)
    assert loss == pytest.approx(float(metrics["cross_entropy"] + 0.3 * metrics["attribution_loss"]), rel=1e-9)
    adv, _ = jax.jit(method.perturb)(networks.mlp_params(KEY), 0, x, labels, index, jax.random.split(KEY, 3)[0])
    logits = networks.mlp(networks.mlp_params(KEY), adv.reshape(6, -1), None)
    assert metrics["cross_entropy"] == pytest.approx(float(-jax.nn.log_softmax(logits)[index, labels].mean()), rel=1e-9)


@pytest.fixture
def small_cnn():
    section = {"name": "small_cnn", "dtype": "float32", "weights": ""}
    return zoo.build(section, num_classes=10, input_shape=(8, 8, 1), mean=(0.3,), std=(0.4,))


def test_without_radius_and_weight_the_step_is_natural_training(small_cnn):
    with jax.enable_x64(False):
        batch = {
            "image": jax.random.uniform(KEY, (16, 8, 8, 1)),
            "label": jnp.arange(16) % 10,
            "index": jnp.arange(16),
        }
        method = art(small_cnn, eps=0.0, num_steps=1, attribution_weight=0.0, bn_update="outer", outer="adv_only")
        variables = method.init(KEY, batch)
        ours, natural = (
            jax.jit(jax.value_and_grad(m.loss, has_aux=True))(*variables, batch, KEY)
            for m in (method, Standard(small_cnn))
        )
        assert ours[0][0] == pytest.approx(float(natural[0][0]), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours[1], natural[1])


def test_training_aligns_gradients_with_images(small_cnn):
    """Eighty steps on a fixed batch: L_attr falls from about log 2, the cosine rises, CE falls, nothing is NaN."""
    with jax.enable_x64(False):
        digits = load_digits()
        batch = {
            "image": jnp.asarray(digits.images[:64, ..., None] / 16, jnp.float32),
            "label": jnp.asarray(digits.target[:64]),
            "index": jnp.arange(64),
        }
        method = art(small_cnn, mask_size=24)
        params, state = method.init(KEY, batch)
        tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
        opt_state = tx.init(params)

        @jax.jit
        def step(params, state, opt_state, key):
            (_, (state, metrics)), gradient = jax.value_and_grad(method.loss, has_aux=True)(params, state, batch, key)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), state, opt_state, metrics

        history = []
        for key in jax.random.split(KEY, 80):
            params, state, opt_state, metrics = step(params, state, opt_state, key)
            history.append({name: float(value) for name, value in metrics.items()})
        first, last = history[0], history[-1]
        assert np.isfinite([list(row.values()) for row in history]).all()
        assert first["attribution_loss"] == pytest.approx(np.log(2), abs=0.1)
        assert last["attribution_loss"] < first["attribution_loss"] - 0.05
        assert last["alignment"] > first["alignment"] + 0.1
        assert last["cross_entropy"] < 0.5 * first["cross_entropy"]
