"""Attacks on any JAX function of images: threat models, per-example losses and the PGD kernel."""

from jrobust.attacks.losses import cross_entropy, margin, untargeted
from jrobust.attacks.pgd import AttackResult, fgsm, pgd
from jrobust.attacks.threat import Threat, l2, linf

__all__ = ["AttackResult", "Threat", "cross_entropy", "fgsm", "l2", "linf", "margin", "pgd", "untargeted"]
