"""Radii and step sizes: text such as "8/255", in pixel units of [0, 1], read as exact fractions."""

from __future__ import annotations

from fractions import Fraction

from jrobust.errors import InputError


def parse(value: str | int | float | Fraction) -> Fraction:
    """Return `value` as an exact fraction; text may be a decimal or a quotient of two decimals.

    >>> parse("1.5/255")
    Fraction(1, 170)
    >>> parse("0.5")
    Fraction(1, 2)

    Raises:
      InputError: the text is no number, the quotient divides by zero, or the number is negative.
    """
    try:
        if isinstance(value, str):
            numerator, _, denominator = value.partition("/")
            number = Fraction(numerator.strip()) / Fraction(denominator.strip() or 1)
        else:
            number = Fraction(value)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(
            f"{value!r} is not a radius: expected a number such as 8/255 or 0.5, in units of [0, 1]"
        ) from error
    if number < 0:
        raise InputError(f"{value!r} is negative: a radius or step size is at least 0, in units of [0, 1]")
    return number


def number(value: str | int | float | Fraction) -> float:
    """Return `parse(value)` as the nearest float.

    >>> number("8/255") == 8 / 255
    True
    """
    return float(parse(value))
