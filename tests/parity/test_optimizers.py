"""SGD against PyTorch's, over 20 steps with a drop of the rate and a group of its own rate."""

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
