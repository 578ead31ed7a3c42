"""Attacks on any JAX function of images: threat models, per-example losses, the PGD kernel, attacks on attributions."""

from jrobust.attacks.apgd import APGD
from jrobust.attacks.apgd_runs import apgd, apgd_targeted
from jrobust.attacks.attribution import ifia, ifia_art, ifia_strict
from jrobust.attacks.autoattack import AutoAttackResult, autoattack
from jrobust.attacks.carlini_wagner import cw_l2, cw_linf
from jrobust.attacks.diversity import Diversity
from jrobust.attacks.fab import FAB, fab
from jrobust.attacks.losses import (
    cross_entropy,
    cw_loss,
    dlr,
    kl,
    margin,
    ranked_targets,
    targeted,
    targeted_cross_entropy,
    targeted_dlr,
    untargeted,
)
from jrobust.attacks.momentum import di_fgsm, mi_fgsm, ni_fgsm, ti_fgsm
from jrobust.attacks.nattack import NAttack, nattack
from jrobust.attacks.pgd import AttackResult, fgsm, pgd
from jrobust.attacks.square import Square, square
from jrobust.attacks.targeted_attribution import targeted_dombrowski, targeted_topk
from jrobust.attacks.threat import Threat, l2, linf

__all__ = [
    "APGD",
    "FAB",
    "AttackResult",
    "AutoAttackResult",
    "Diversity",
    "NAttack",
    "Square",
    "Threat",
    "apgd",
    "apgd_targeted",
    "autoattack",
    "cross_entropy",
    "cw_l2",
    "cw_linf",
    "cw_loss",
    "di_fgsm",
    "dlr",
    "fab",
    "fgsm",
    "ifia",
    "ifia_art",
    "ifia_strict",
    "kl",
    "l2",
    "linf",
    "margin",
    "mi_fgsm",
    "nattack",
    "ni_fgsm",
    "pgd",
    "ranked_targets",
    "square",
    "targeted",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_dombrowski",
    "targeted_topk",
    "ti_fgsm",
    "untargeted",
]
