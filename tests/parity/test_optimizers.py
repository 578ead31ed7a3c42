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
    optimizer = optimizers.build(section, ours, steps_per_epoch=5, total_steps=20)
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
        optimizer = optimizers.build(section, ours, steps_per_epoch=4, total_steps=28)
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


def one_cycle(adamw, total):
    return torch.optim.lr_scheduler.OneCycleLR(adamw, 0.01, total, pct_start=0.02)


def warm_cosine(adamw, total):
    def factor(step):
        return (step + 1) / 30 if step < 30 else 0.5 * (1 + np.cos(np.pi * (step - 30) / (total - 30)))

    return torch.optim.lr_scheduler.LambdaLR(adamw, factor)


@pytest.mark.parametrize(
    "fields, scheduler",
    [
        ({"schedule": "cosine", "warmup_steps": 30}, warm_cosine),
        ({"schedule": "one_cycle"}, one_cycle),
    ],
)
def test_adamw_with_clipping_and_a_schedule_is_pytorchs(fields, scheduler):
    """In float64 over 220 steps, gradients of norms around the largest; parameters of very different sizes."""
    rng, total = np.random.default_rng(0), 220
    start = {"body": rng.normal(size=(4, 5)), "scale": 100 * rng.normal(size=3), "fc": 1e-3 * rng.normal(size=7)}
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    adamw = torch.optim.AdamW(theirs.values(), lr=0.01, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1)
    schedule = scheduler(adamw, total)
    section = {"name": "adamw", "learning_rate": 0.01, "betas": (0.9, 0.99), "epsilon": 1e-3, "weight_decay": 0.1}
    section |= {"clip_norm": 1.0, "fast_layers": (), "fast_factor": 1.0} | fields
    clipped = 0
    with jax.enable_x64(True):
        ours = {name: jnp.asarray(value) for name, value in start.items()}
        optimizer = optimizers.build(section, ours, steps_per_epoch=1, total_steps=total)
        state, update = optimizer.tx.init(ours), jax.jit(optimizer.tx.update)
        for step in range(total):
            np.testing.assert_allclose(optimizer.learning_rate(step), schedule.get_last_lr()[0], rtol=1e-9, atol=1e-18)
            gradients = {name: 0.18 * rng.normal(size=value.shape) for name, value in start.items()}
            for name, parameter in theirs.items():
                parameter.grad = torch.tensor(gradients[name])
            clipped += float(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)) > 1
            adamw.step()
            if step < total - 1:
                schedule.step()
            updates, state = update(gradients, state, ours)
            ours = optax.apply_updates(ours, updates)
        assert 0.2 < clipped / total < 0.8
        for name, parameter in theirs.items():
            assert ours[name].dtype == jnp.float64
            # PyTorch divides by the norm + 1e-6.
            np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=1e-6, atol=2e-7, err_msg=name)
