"""Training methods, one a file, and the one place that makes a method of a config section."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from jrobust import units
from jrobust.errors import InputError, unknown
from jrobust.methods.adversarial import Adversarial
from jrobust.methods.art import ART
from jrobust.methods.network import NetworkMethod
from jrobust.methods.standard import Standard
from jrobust.models.classifier import Classifier

METHODS: dict[str, type[NetworkMethod]] = {"standard": Standard, "adversarial": Adversarial, "art": ART}
_RADII = ("eps", "step_size")


def build(section: Mapping[str, Any], classifier: Classifier) -> NetworkMethod:
    """Return the method of `config.method`: `name` picks the class, every other field is one of its numbers.

    Raises:
      InputError: an unknown method, a field it lacks, a missing field, or a value that is none of the allowed words.
    """
    values = dict(section)
    name = values.pop("name")
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    fields = {field.name: field for field in dataclasses.fields(METHODS[name]) if field.name != "classifier"}
    for key in values:
        if key not in fields:
            raise unknown(f"field of method {name!r}", key, fields)
    missing = [key for key, field in fields.items() if key not in values and field.default is dataclasses.MISSING]
    if missing:
        raise InputError(f"method {name!r} lacks {', '.join(missing)}: set config.method.{missing[0]}")
    for key in values:
        values[key] = units.number(values[key]) if key in _RADII else values[key]
        choices = _choices(METHODS[name], key)
        if choices and values[key] not in choices:
            raise unknown(f"method.{key}", values[key], choices)
    return METHODS[name](classifier, **values)


def _choices(method: type, field: str) -> tuple:
    """Return the words that a field annotated as a Literal allows, () for any other field."""
    hint = typing.get_type_hints(method).get(field)
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


__all__ = ["ART", "METHODS", "Adversarial", "Standard", "build"]
