"""Training methods, one a file, and the one place that makes a method of a config section."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, cast

from jrobust import units
from jrobust.errors import InputError, unknown
from jrobust.methods.adversarial import Adversarial, AdversarialMethod
from jrobust.methods.art import ART
from jrobust.methods.biasadv import BiasAdv
from jrobust.methods.contrastive import Contrastive
from jrobust.methods.debiasing import Debiasing
from jrobust.methods.erm import ERM
from jrobust.methods.fsr import FSR
from jrobust.methods.jtt import JTT, Identification
from jrobust.methods.lff import LfF
from jrobust.methods.linear_probe import LinearProbe
from jrobust.methods.mart import MART
from jrobust.methods.masked_images import MaskedImages
from jrobust.methods.network import NetworkMethod
from jrobust.methods.pmg_aft import PMGAFT
from jrobust.methods.standard import Standard
from jrobust.methods.trades import TRADES
from jrobust.models.classifier import Classifier
from jrobust.models.clip.linear_head import LinearHead
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.models.network import Network

METHODS: dict[str, type[NetworkMethod]] = {
    "standard": Standard,
    "adversarial": Adversarial,
    "trades": TRADES,
    "mart": MART,
    "art": ART,
    "erm": ERM,
    "identification": Identification,
    "jtt": JTT,
    "lff": LfF,
    "pmg_aft": PMGAFT,
    "contrastive": Contrastive,
    "masked_images": MaskedImages,
    "linear_probe": LinearProbe,
}
_RADII = ("eps", "step_size")
_PARTS = ("classifier", "base", "num_examples", "microbatches", "class_tokens")  # fields that no config sets
_NOT_NEGATIVE = (
    *("num_steps", "step_ratio", "alpha", "rate", "threshold"),
    *("debiased_weight", "adv_weight", "general_weight", "clean_weight", "feature_weight", "logit_weight"),
)
_AT_MOST_1 = ("q", "alpha", "rate", "threshold")
_POSITIVE = ("temperature", "groups")
# Methods that train nothing but a CLIP, by its head, and others that can: the rest needs ReLUs or makes two networks.
_OF_CLIP: dict[str, type[TowerClassifier]] = {
    "pmg_aft": ZeroShot,
    "contrastive": ZeroShot,
    "masked_images": LinearHead,
    "linear_probe": LinearHead,
}
_ON_CLIP = ("standard", "adversarial", "trades", "mart")


def build(
    section: Mapping[str, Any],
    classifier: Network,
    *,
    num_examples: int = 0,
    microbatches: int = 1,
    class_tokens: tuple[tuple[tuple[int, ...], ...], ...] = (),
) -> NetworkMethod:
    """Return the method of `config.method`: `name` picks the class, every other field is one of its numbers.

    A subsection `fsr` or `biasadv` with the numbers of `FSR` or `BiasAdv` puts that on top of the named method. With
    `fsr` the network has FSR modules.

    Args:
      section: of the config.
      classifier: the network.
      num_examples: of the training set, for methods that remember each image.
      microbatches: equal parts in which the trainer hands over a batch, for methods whose loss is a sum over all of it.
      class_tokens: the texts of each class, for contrastive training.

    Raises:
      InputError: an unknown method, a field it lacks, a missing field, or a value that is none of the allowed words; a
        method of CLIP on another network, or one that CLIP has no place for; a
        subsection `fsr` without modules in the network or the reverse; a subsection on a method that cannot carry it,
        or none on a method that is nothing without it.
    """
    values = dict(section)
    name, fsr, biasadv = values.pop("name"), values.pop("fsr", None), values.pop("biasadv", None)
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    _check_network(name, classifier)
    numbers = _numbers(METHODS[name], f"method {name!r}", "method", values)
    given = {"num_examples": num_examples, "microbatches": microbatches, "class_tokens": class_tokens}
    numbers |= {field: given[field] for field in given if field in METHODS[name].__dataclass_fields__}
    method = METHODS[name](classifier, **numbers)
    if (fsr is not None) != (getattr(getattr(classifier, "module", None), "fsr", None) is not None):
        found, lacking = ("method.fsr", "model.fsr") if fsr is not None else ("model.fsr", "method.fsr")
        raise InputError(f"{found} is set and {lacking} is not: one is the modules, the other their losses; set both")
    if fsr is not None and biasadv is not None:
        raise InputError("method.fsr and method.biasadv are both set: expected one of them")
    if biasadv is None and name in ("erm", "jtt"):
        raise InputError(
            f"method {name!r} trains a biased network for method.biasadv alone: set it, or take 'standard'"
        )
    if biasadv is not None:
        return _bias_adversarial(method, name, dict(biasadv))
    return method if fsr is None else _separated(method, name, dict(fsr))


def _check_network(name: str, classifier: Network) -> None:
    """Raise InputError where a method and a network do not go together."""
    if name in _OF_CLIP and not isinstance(classifier, _OF_CLIP[name]):
        head = {ZeroShot: "text", LinearHead: "linear"}[_OF_CLIP[name]]
        raise InputError(f"method {name!r} trains CLIP alone: expected model.name 'clip' with model.head {head!r}")
    if isinstance(classifier, TowerClassifier) and name not in (*_OF_CLIP, *_ON_CLIP):
        allowed = ", ".join((*_OF_CLIP, *_ON_CLIP))
        raise InputError(f"method {name!r} cannot train model 'clip': expected one of {allowed}")


def _bias_adversarial(base: NetworkMethod, name: str, values: dict[str, Any]) -> BiasAdv:
    """Return BiasAdv on top of a method."""
    if not isinstance(base, Debiasing):
        raise InputError(f"method {name!r} does not carry method.biasadv: expected erm, jtt or lff")
    numbers = _numbers(BiasAdv, "method.biasadv", "method.biasadv", values)
    return BiasAdv(cast(Classifier, base.classifier), base, **numbers)


def _separated(base: NetworkMethod, name: str, values: dict[str, Any]) -> FSR:
    """Return FSR on top of a method."""
    if not isinstance(base, AdversarialMethod):
        raise InputError(f"method {name!r} does not carry method.fsr: expected adversarial, trades or mart")
    method = FSR(cast(Classifier, base.classifier), base, **_numbers(FSR, "method.fsr", "method.fsr", values))
    if not base.forwards_clean and (method.auxiliary_on != "adv" or method.auxiliary_kl):
        raise InputError(
            f"method {name!r} never forwards clean images: set method.fsr.auxiliary_on to adv and auxiliary_kl to False"
        )
    return method


def _numbers(method: type[NetworkMethod], title: str, path: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a method from a config section, checked against the class."""
    fields = {field.name: field for field in dataclasses.fields(method) if field.name not in _PARTS}
    for key in values:
        if key not in fields:
            raise unknown(f"field of {title}", key, fields)
    missing = [key for key, field in fields.items() if key not in values and field.default is dataclasses.MISSING]
    if missing:
        raise InputError(f"{title} lacks {', '.join(missing)}: set config.{path}.{missing[0]}")
    for key in values:
        if key in _RADII:  # "" where a radius may be left to the method
            values[key] = None if values[key] == "" and fields[key].default is None else units.number(values[key])
        if key in _NOT_NEGATIVE and not values[key] >= 0:
            raise InputError(f"{path}.{key} is {values[key]}: expected a number of at least 0")
        if key in _AT_MOST_1 and not values[key] <= 1:
            raise InputError(f"{path}.{key} is {values[key]}: expected a number of at most 1")
        if key in _POSITIVE and not values[key] > 0:
            raise InputError(f"{path}.{key} is {values[key]}: expected a number above 0")
        if key == "q" and not values[key] > 0:  # the biased network would not learn
            raise InputError(f"{path}.q is {values[key]}: expected a number above 0 and at most 1")
        choices = _choices(method, key)
        if choices and values[key] not in choices:
            raise unknown(f"{path}.{key}", values[key], choices)
    return values


def _choices(method: type, field: str) -> tuple:
    """Return the words that a field annotated as a Literal allows, () for any other field."""
    hint = typing.get_type_hints(method).get(field)
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


__all__ = [
    "ART",
    "ERM",
    "FSR",
    "JTT",
    "MART",
    "METHODS",
    "PMGAFT",
    "TRADES",
    "Adversarial",
    "AdversarialMethod",
    "BiasAdv",
    "Contrastive",
    "Debiasing",
    "Identification",
    "LfF",
    "LinearProbe",
    "MaskedImages",
    "Standard",
    "build",
]
