import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.errors import InputError
from jrobust.training import optimizers

PARAMS = {"layer4.0.conv1": {"kernel": jnp.ones(3)}, "layer40": {"kernel": jnp.ones(2)}, "fc": {"bias": jnp.ones(2)}}


def section(**fields):
    return {
        "name": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.0,
        "drop_epochs": (),
        "drop_factors": (),
        "fast_layers": (),
        "fast_factor": 1.0,
    } | fields


def adam(**fields):
    """A section of Adam: without the fields of SGD."""
    own = {"name": "adam", "betas": (0.9, 0.999), "epsilon": 1e-8}
    return {name: value for name, value in section().items() if name not in ("momentum", "nesterov")} | own | fields


def rates(epochs, drop_epochs, drop_factors, per_epoch=7):
    optimizer = optimizers.build(
        section(learning_rate=1.0, drop_epochs=drop_epochs, drop_factors=drop_factors),
        PARAMS,
        steps_per_epoch=per_epoch,
        total_steps=200 * per_epoch,
    )
    return [optimizer.learning_rate(epoch * per_epoch) for epoch in epochs]


@pytest.mark.parametrize(
    "epochs, drop_epochs, drop_factors, expected",
    [
        ((0, 49, 50, 80, 99), (50, 80, 150), (0.1, 0.1, 0.5), (1, 1, 0.1, 0.01, 0.01)),  # CIFAR-10
        ((149, 150, 199), (50, 80, 150), (0.1, 0.1, 0.5), (0.01, 0.005, 0.005)),  # SVHN
        ((3, 4, 6, 9, 10), (4, 6, 10), (0.1, 0.1, 0.5), (1, 0.1, 0.01, 0.01, 0.005)),  # GTSRB
        ((14, 15, 35, 49, 50), (15, 35, 50), (0.1, 0.1, 0.5), (1, 0.1, 0.01, 0.01, 0.005)),  # Flower17
        ((39, 40, 80, 120, 160), (40, 80, 120, 160), (0.1,) * 4, (1, 0.1, 0.01, 1e-3, 1e-4)),  # CUB-200, ART
    ],
)
def test_published_schedules(epochs, drop_epochs, drop_factors, expected):
    np.testing.assert_allclose(rates(epochs, drop_epochs, drop_factors), expected, rtol=1e-6)


def test_a_drop_falls_on_the_first_step_of_its_epoch():
    optimizer = optimizers.build(
        section(drop_epochs=(2,), drop_factors=(0.5,)), PARAMS, steps_per_epoch=10, total_steps=30
    )
    params, state, expected = PARAMS, optimizer.tx.init(PARAMS), {0: 0.1, 19: 0.1, 20: 0.05, 21: 0.05}
    for step in range(22):
        state = jax.tree.map(lambda leaf: leaf * 0 if jnp.ndim(leaf) else leaf, state)  # no momentum: update = 1.9 rate
        updates, state = optimizer.tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        if step in expected:
            assert optimizer.learning_rate(step) == expected[step]
            np.testing.assert_allclose(updates["fc"]["bias"], -1.9 * expected[step], rtol=1e-6)


def test_two_steps_by_hand():
    # g = 1 + 0.5 theta. Step 1: g = 1.5, m = 1.5, nesterov g + 0.9 m = 2.85, theta = 1 - 0.285 = 0.715.
    # Step 2: g = 1.3575, m = 2.7075, g + 0.9 m = 3.79425, theta = 0.715 - 0.379425 = 0.335575.
    params = {"w": jnp.ones(1)}
    tx = optimizers.build(section(weight_decay=0.5), params, steps_per_epoch=1, total_steps=10).tx
    state = tx.init(params)
    for expected in (0.715, 0.335575):
        updates, state = tx.update({"w": jnp.ones(1)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-6)


def test_three_steps_of_adam_by_hand():
    """PyTorch's Adam with b1 1/2, b2 3/4, epsilon 1/2, decay 1/2, rate 1/10, from the third step 1/20.

    Unrolled, m^ is g1, (g1 + 2 g2) / 3, (g1 + 2 g2 + 4 g3) / 7 and v^ is g1^2, (3 g1^2 + 4 g2^2) / 7,
    (9 g1^2 + 12 g2^2 + 16 g3^2) / 37, where g is the gradient with its decay.
    """
    fields = {"betas": (0.5, 0.75), "epsilon": 0.5, "weight_decay": 0.5, "drop_epochs": (2,), "drop_factors": (0.5,)}
    gradients = np.array([[2.5, 1.0], [0.25, -3.0], [-1.0, 0.0]])
    with jax.enable_x64(True):
        params = {"kernel": jnp.array([1.0]), "bias": jnp.array([-2.0])}
        tx = optimizers.build(adam(**fields), params, steps_per_epoch=1, total_steps=10).tx
        state = tx.init(params)
        found = []
        for first, second in gradients:
            updates, state = tx.update({"kernel": jnp.array([first]), "bias": jnp.array([second])}, state, params)
            params = optax.apply_updates(params, updates)
            found.append([float(params["kernel"][0]), float(params["bias"][0])])
    theta, expected = np.array([1.0, -2.0]), []
    g1 = gradients[0] + theta / 2  # 3 and 0: the decay of the bias takes its gradient away
    np.testing.assert_array_equal(g1, [3, 0])
    theta = theta - 0.1 * g1 / (abs(g1) + 0.5)
    expected.append(theta)
    g2 = gradients[1] + theta / 2
    theta = theta - 0.1 * (g1 + 2 * g2) / 3 / (np.sqrt((3 * g1**2 + 4 * g2**2) / 7) + 0.5)
    expected.append(theta)
    g3 = gradients[2] + theta / 2
    theta = theta - 0.05 * (g1 + 2 * g2 + 4 * g3) / 7 / (np.sqrt((9 * g1**2 + 12 * g2**2 + 16 * g3**2) / 37) + 0.5)
    expected.append(theta)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_decay_of_adam_goes_through_the_moments():
    """Without a gradient a parameter of any size moves by the rate; that of AdamW would by rate * decay * theta."""
    params = {"scale": jnp.array([5.0, -0.25, 0.0])}
    tx = optimizers.build(adam(weight_decay=1e-2), params, steps_per_epoch=1, total_steps=10).tx
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["scale"], [-0.1, 0.1, 0.0], rtol=1e-4)


def adamw(**fields):
    """A section of AdamW: the fields of Adam."""
    return adam(name="adamw", **fields)


def test_the_decay_of_adamw_goes_past_the_moments():
    """Two steps by hand, b1 1/2, b2 3/4, epsilon 1/2, decay 1/2, rate 1/10: each takes 1/20 of theta besides."""
    fields = {"betas": (0.5, 0.75), "epsilon": 0.5, "weight_decay": 0.5}
    g1, g2 = np.array([2.5, 0.0]), np.array([0.25, -3.0])
    with jax.enable_x64(True):
        params = {"kernel": jnp.array([1.0]), "bias": jnp.array([-2.0])}
        tx = optimizers.build(adamw(**fields), params, steps_per_epoch=1, total_steps=10).tx
        state, found = tx.init(params), []
        for first, second in (g1, g2):
            updates, state = tx.update({"kernel": jnp.array([first]), "bias": jnp.array([second])}, state, params)
            params = optax.apply_updates(params, updates)
            found.append([float(params["kernel"][0]), float(params["bias"][0])])
    one = np.array([1.0, -2.0]) * 0.95 - 0.1 * g1 / (abs(g1) + 0.5)
    two = one * 0.95 - 0.1 * (g1 + 2 * g2) / 3 / (np.sqrt((3 * g1**2 + 4 * g2**2) / 7) + 0.5)
    np.testing.assert_allclose(found, [one, two], rtol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_clipping_is_of_all_parameters_together_and_before_anything_else(name):
    """A gradient of norm 5 is brought to 1, one of norm 1/2 left; L2 of the parameters is not in the norm."""
    own = section() | adam() | {"name": name, "weight_decay": 0.5, "epsilon": 0.5}
    params = {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([-8.0])}

    def update(clip_norm, size):
        gradient = {"kernel": jnp.array([3.0 * size, 0.0]), "bias": jnp.array([4.0 * size])}
        tx = optimizers.build(own | {"clip_norm": clip_norm}, params, steps_per_epoch=1, total_steps=10).tx
        return tx.update(gradient, tx.init(params), params)[0]

    for size, left in ((1.0, 0.2), (0.1, 0.1)):
        found, expected = update(1.0, size), update(0.0, left)
        for leaf in params:
            np.testing.assert_allclose(found[leaf], expected[leaf], rtol=1e-6)


@pytest.mark.parametrize("fields", [section(), section(momentum=0.0), adam(), adam(fast_layers=("fc",))])
def test_the_arrays_of_earlier_checkpoints_keep_their_names(fields):
    """With no field of later versions; the number and the nesting of the parts are in the names."""
    tx = optimizers.build(fields, {"fc": jnp.ones(1)}, steps_per_epoch=1, total_steps=10).tx
    state = jax.tree_util.tree_flatten_with_path(tx.init({"fc": jnp.ones(1)}))[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in state]
    moments = ["1/0/count", "1/0/mu/fc", "1/0/nu/fc"] if fields["name"] == "adam" else ["1/0/trace/fc"]
    assert names == [*(moments if fields.get("momentum") != 0 else []), "1/1/count"]


@pytest.mark.parametrize("section", [section, adam, adamw])
def test_fast_layers_move_faster_and_nothing_else_does(section):
    fast = section(fast_layers=("layer4", "fc"), fast_factor=10.0, weight_decay=0.01)
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    moved = {}
    for name, fields in (("fast", fast), ("plain", section(weight_decay=0.01))):
        tx = optimizers.build(fields, PARAMS, steps_per_epoch=1, total_steps=10).tx
        state = tx.init(PARAMS)
        for _ in range(2):
            updates, state = tx.update(gradients, state, PARAMS)
        moved[name] = updates
    ratios = jax.tree.map(lambda a, b: float((a / b)[0]), moved["fast"], moved["plain"])
    np.testing.assert_allclose(ratios["layer4.0.conv1"]["kernel"], 10, rtol=1e-6)
    np.testing.assert_allclose(ratios["fc"]["bias"], 10, rtol=1e-6)
    assert ratios["layer40"]["kernel"] == 1


def test_without_momentum_there_is_no_buffer():
    tx = optimizers.build(section(momentum=0.0), PARAMS, steps_per_epoch=1, total_steps=10).tx
    assert all(leaf.ndim == 0 for leaf in jax.tree.leaves(tx.init(PARAMS)))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "sdg"}, "did you mean 'sgd'"),
        ({"fast_layers": ("layer5",)}, r"unknown layer in optimizer.fast_layers 'layer5'.*layer4.*did you mean"),
        ({"drop_epochs": (3,)}, "expected one factor for each epoch"),
        ({"drop_epochs": (3, 2), "drop_factors": (0.1, 0.1)}, "ascending"),
        ({"drop_epochs": ("a",), "drop_factors": (0.1,)}, "expected numbers above 0"),
        ({"learning_rate": -1.0}, "optimizer.learning_rate is -1.0"),
        ({"weight_decay": float("nan")}, "optimizer.weight_decay"),
        ({"momentum": -0.1}, "optimizer.momentum is -0.1"),
        (adam(betas=(0.9,)), r"optimizer.betas is \(0.9,\): expected two numbers"),
        (adam(betas=(0.9, 1.0)), r"optimizer.betas is \(0.9, 1.0\).*below 1"),
        (adam(betas=(-0.1, 0.9)), "optimizer.betas"),
        (adam(betas=("a", 0.9)), "optimizer.betas"),
        (adam(epsilon=0.0), "optimizer.epsilon is 0.0: expected a number above 0"),
        (adam(learning_rate=float("nan")), "optimizer.learning_rate"),
        (adam(name="adamv"), "did you mean 'adam'"),
        (adam(name="adamw", betas=(0.9,)), r"optimizer.betas"),
        ({"clip_norm": -1.0}, "optimizer.clip_norm is -1.0"),
        ({"schedule": "cosin"}, "unknown optimizer.schedule 'cosin': expected one of steps, cosine, one_cycle"),
        ({"schedule": "cosine", "warmup_steps": -1}, "optimizer.warmup_steps is -1: expected a whole number"),
        ({"schedule": "cosine", "warmup_steps": 0.5}, "optimizer.warmup_steps is 0.5"),
        ({"schedule": "cosine", "warmup_steps": "a"}, "optimizer.warmup_steps is a"),
    ],
)
def test_bad_sections(fields, message):
    with pytest.raises(InputError, match=message):
        optimizers.build(section(**fields), PARAMS, steps_per_epoch=1, total_steps=10)
