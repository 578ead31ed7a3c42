"""The same attack by the libraries that people use on PyTorch: torchattacks and foolbox.

Imported only where they are installed:

    pip install torchattacks==3.5.1 foolbox==3.3.4

This takes `requests` back to 2.25 and brings torchvision, for neither of which there is a use here. Without both:

    pip install --no-deps torchattacks==3.5.1 foolbox==3.3.4 eagerpy GitPython gitdb smmap

Each takes the network of benchmarks/torch_attack.py, with the normalisation inside, in inference mode. Neither takes a
point to start from, so what each draws at its start is replaced by the start of the others. Of foolbox the attack alone
is run: calling it would add a forward pass, and the judgement of its result.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import eagerpy
import foolbox
import numpy as np
import torch
import torchattacks
from torch import nn

from benchmarks.torch_attack import Attack


class Cast(nn.Module):
    """A network in autocast to bfloat16, or as it is; logits in float32."""

    def __init__(self, net: nn.Module, cast: bool):
        super().__init__()
        self.net, self.cast = net, cast

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.cast):
            return self.net(images).float()


class Torchattacks(Attack):
    """PGD of torchattacks."""

    def program(
        self, images: np.ndarray, labels: np.ndarray, start: np.ndarray, *, eps: float, step_size: float
    ) -> Callable[[], torch.Tensor]:
        """Return the attack without arguments, its inputs on the device; a call ends when the device has ended."""
        x, x0 = self._place(images), self._place(start)
        y = torch.tensor(labels, dtype=torch.long, device=self.where)
        attack = torchattacks.PGD(Cast(self.forward, self.bfloat16), eps, step_size, self.num_steps)

        def run() -> torch.Tensor:
            with mock.patch.object(torch.Tensor, "uniform_", lambda *_: x0 - x):
                return attack(x, y)

        return self._waited(run)


class _LinfPGD(foolbox.attacks.LinfPGD):
    start: torch.Tensor

    def get_random_start(self, x0: eagerpy.Tensor, epsilon: float) -> eagerpy.Tensor:
        """Return the start that was given."""
        return eagerpy.astensor(self.start)


class Foolbox(Attack):
    """PGD of foolbox."""

    def program(
        self, images: np.ndarray, labels: np.ndarray, start: np.ndarray, *, eps: float, step_size: float
    ) -> Callable[[], torch.Tensor]:
        """Return the attack without arguments, its inputs on the device; a call ends when the device has ended."""
        x, y = self._place(images), torch.tensor(labels, dtype=torch.long, device=self.where)
        model = foolbox.PyTorchModel(Cast(self.forward, self.bfloat16).eval(), (0, 1), self.where)
        attack = _LinfPGD(abs_stepsize=step_size, steps=self.num_steps, random_start=True)
        attack.start = self._place(start)
        return self._waited(lambda: attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=eps))


ATTACKS: dict[str, type[Attack]] = {"torchattacks": Torchattacks, "foolbox": Foolbox}
