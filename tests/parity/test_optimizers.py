"""SGD and Adam against PyTorch's, over some epochs with drops of the rate and a group of its own rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.training import optimizers

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_pytorchs(nesterov):
    rng = np.random.default_rng(0)
    start = {"body": rng.normal(size=(4, 5)), "fc": rng.normal(size=7)}
    start = {name: value.astype(np.float32) for name, value in start.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [{"params": [theirs["body"]]}, {"params": [theirs["fc"]], "lr": 0.1}]
    sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-2, nesterov=nesterov)
    drops = torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 3], gamma=0.1)  # in epochs of 5 steps

    section = {
        "name": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "nesterov": nesterov,
        "weight_decay": 1e-2,
        "drop_epochs": (2, 3),
        "drop_factors": (0.1, 0.1),
        "fast_layers": ("fc",),
        "fast_factor": 10.0,
    }
    ours = {name: jnp.asarray(value) for name, value in start.items()}
    optimizer = optimizers.build(section, ours, steps_per_epoch=5)
    state = optimizer.tx.init(ours)
    for step in range(20):
        gradients = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in start.items()}
        np.testing.assert_allclose(optimizer.learning_rate(step), sgd.param_groups[0]["lr"], rtol=1e-6)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        sgd.step()
        if step % 5 == 4:
            drops.step()
        updates, state = optimizer.tx.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=0, atol=5e-7)


@pytest.mark.parametrize("betas, epsilon", [((0.9, 0.999), 1e-8), ((0.5, 0.7), 0.1)])
def test_adam_with_decay_and_drops_is_pytorchs(betas, epsilon):
    """StepLR(step_size=2, gamma=0.5) over 7 epochs of 4 steps, in float64; parameters of very different sizes."""
    rng = np.random.default_rng(0)
    start = {"body": rng.normal(size=(4, 5)), "scale": 100 * rng.normal(size=3), "fc": 1e-3 * rng.normal(size=7)}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [{"params": [theirs["body"], theirs["scale"]]}, {"params": [theirs["fc"]], "lr": 0.1}]
    adam = torch.optim.Adam(groups, lr=0.01, betas=betas, eps=epsilon, weight_decay=1e-2)
    drops = torch.optim.lr_scheduler.StepLR(adam, step_size=2, gamma=0.5)
    section = {
        "name": "adam",
        "learning_rate": 0.01,
        "betas": betas,
        "epsilon": epsilon,
        "weight_decay": 1e-2,
        "drop_epochs": (2, 4, 6),
        "drop_factors": (0.5, 0.5, 0.5),
        "fast_layers": ("fc",),
        "fast_factor": 10.0,
    }
    with jax.enable_x64(True):
        ours = {name: jnp.asarray(value) for name, value in start.items()}
        optimizer = optimizers.build(section, ours, steps_per_epoch=4)
        state, update = optimizer.tx.init(ours), jax.jit(optimizer.tx.update)
        for step in range(28):
            np.testing.assert_allclose(optimizer.learning_rate(step), adam.param_groups[0]["lr"], rtol=1e-12)
            gradients = {name: rng.normal(size=value.shape) * value.std() for name, value in start.items()}
            for name, parameter in theirs.items():
                parameter.grad = torch.tensor(gradients[name])
            adam.step()
            if step % 4 == 3:
                drops.step()
            updates, state = update(gradients, state, ours)
            ours = optax.apply_updates(ours, updates)
        for name, parameter in theirs.items():
            assert ours[name].dtype == jnp.float64
            np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-11, atol=1e-13, err_msg=name)
