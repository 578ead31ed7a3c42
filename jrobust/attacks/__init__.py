"""Attacks on any JAX function of images: threat models, per-example losses, the PGD kernel, attacks on attributions."""

from jrobust.attacks.attribution import ifia, ifia_art, ifia_strict
from jrobust.attacks.losses import cross_entropy, margin, untargeted
from jrobust.attacks.pgd import AttackResult, fgsm, pgd
from jrobust.attacks.targeted_attribution import targeted_dombrowski, targeted_topk
from jrobust.attacks.threat import Threat, l2, linf

__all__ = [
    "AttackResult",
    "Threat",
    "cross_entropy",
    "fgsm",
    "ifia",
    "ifia_art",
    "ifia_strict",
    "l2",
    "linf",
    "margin",
    "pgd",
    "targeted_dombrowski",
    "targeted_topk",
    "untargeted",
]
