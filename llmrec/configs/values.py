"""Values of options: `parse` reads them from text, `type_error` checks them, both by the annotation of the field.

`parse` judges nothing. Values from YAML, flags and Python are all checked by `type_error`.
"""

from __future__ import annotations

import math
import numbers
import os
import types
import typing
from collections.abc import Mapping
from typing import Literal

NAMES: dict[object, str] = {str: "texts", int: "integers", float: "finite numbers"}
SWITCHES = {"true": True, "false": False}


def parse(value: object, hint: object) -> object:
    """Turn text into the value that a field of type `hint` means by it.

    Nothing is lost: 2.5 is no integer, and text that stands for no value of the type is returned as it is, for
    `type_error` to refuse.

    Args:
        value: A YAML scalar or flag as text, a list of them, or a value from Python, which stays as it is.
        hint: Annotation of the field.

    >>> parse("1e1", int), parse("2.5", int), parse("text, famae", list[str])
    (10, '2.5', ['text', 'famae'])
    """
    kind, optional = _kind(hint)
    if optional and value == "null":
        return None
    if typing.get_origin(kind) is list:
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        return [parse(part, typing.get_args(kind)[0]) for part in parts] if isinstance(parts, list) else parts
    if kind is bool and isinstance(value, str):
        return SWITCHES.get(value.lower(), value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float) and isinstance(value, str):
        return _number(value, whole=kind is int)
    return value


def type_error(value: object, hint: object) -> str | None:
    """Sentence that says what a field of type `hint` needs, or None if `value` is of that type.

    >>> type_error("2.5", int), type_error(None, int | None)
    ('an integer is needed', None)
    """
    kind, optional = _kind(hint)
    if optional and value is None:
        return None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return None if isinstance(value, str) and value in arguments else f"choose from {', '.join(arguments)}"
    if origin is list:
        fits = isinstance(value, list | tuple) and not any(type_error(part, arguments[0]) for part in value)
        return None if fits else f"a list of {NAMES.get(arguments[0], arguments[0])} is needed"
    if origin is dict:
        return None if isinstance(value, Mapping) else "a block of `key: value` lines is needed"
    if kind is bool:
        return None if isinstance(value, bool) else "true or false is needed"
    if kind is int:
        return None if isinstance(value, numbers.Integral) and not isinstance(value, bool) else "an integer is needed"
    if kind is float:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
        return None if fits else "a finite number is needed"
    return None if kind is not str or isinstance(value, str | os.PathLike) else "text is needed"


def _kind(hint: object) -> tuple[object, bool]:
    """Type of a field without `None`, and whether the field may be None."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return kinds[0], len(kinds) < len(typing.get_args(hint))


def _is_finite(number: numbers.Real) -> bool:
    """True if a float can hold the number; Python's integers have no largest one."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _number(text: str, whole: bool) -> object:
    """Number that a text stands for, exactly; the text itself if it stands for none of the kind."""
    try:
        number = float(text)
        if not math.isfinite(number) or (whole and not number.is_integer()):
            return text
        return number if not whole else int(text) if text.lstrip("+-").isdigit() else int(number)
    except (ValueError, OverflowError):
        return text
