"""Options: the fields of a config, with their explanation and their bounds.

A field with `help` metadata explains itself in `--help` and in the docs; `identity=False` marks what does not change a
result (where it is written, which device computes it), so that a run may be resumed with another value; `least`,
`above` and `most` bound a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
import os
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

BOUNDS = {"least": "at least {} is needed", "above": "more than {} is needed", "most": "at most {} is allowed"}
NAMES = {str: "texts", int: "integers", float: "finite numbers"}
MAX_SEED = 2**32 - 1  # numpy takes no larger one


def option(
    help: str,
    default: Any = MISSING,
    identity: bool = True,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A config field with its explanation; list defaults are copied for each instance.

    Args:
        help: What the field means, for `--help` and the docs.
        default: Value when left out; required without one.
        identity: Whether another value makes another run.
        least: Smallest value allowed.
        above: What the value must exceed, where no smallest one can be named.
        most: Largest value allowed.
    """
    bounds = {k: v for k, v in {"least": least, "above": above, "most": most}.items() if v is not None}
    metadata = {"help": help, "identity": identity, "bounds": bounds}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def copied(f: dataclasses.Field) -> Any:
    """The same field for another class."""
    return field(default=f.default, default_factory=f.default_factory, metadata=f.metadata)


@dataclass(kw_only=True)
class Config:
    """Base of all: what can be told wrong from the options alone is refused, however the config is made."""

    def __post_init__(self):
        fields, hints = dataclasses.fields(self), typing.get_type_hints(type(self))
        needed = {f.name: type_error(getattr(self, f.name), hints[f.name]) for f in fields}
        problems = [f"{name} is {getattr(self, name)!r}; {what}" for name, what in needed.items() if what]
        problems += [p for f in fields if not needed[f.name] for p in out_of_bounds(f, getattr(self, f.name))]
        problems = problems or self.problems()
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def problems(self) -> list[str]:
        """Options that do not go together, each within its bounds."""
        return []

    @classmethod
    def completed(cls, given: dict[str, Any]) -> type[Config]:
        """The class with all fields, where options given say what further options there are."""
        return cls


@dataclass(kw_only=True)
class StageConfig(Config):
    out: str = option("Directory to write.", identity=False)
    overwrite: bool = option("Replace the result of another run in `out`.", False, identity=False)
    seed: int = option("Seed of everything random in this stage.", 0, least=0, most=MAX_SEED)


def type_error(value: Any, hint: Any) -> str | None:
    """What is needed of an option in the place of a value of another type; None where it fits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [kind for kind in arguments if kind is not types.NoneType]
        return None if value is None and len(kinds) < len(arguments) else type_error(value, kinds[0])
    if origin is Literal:
        return None if value in arguments else f"choose from {', '.join(map(str, arguments))}"
    if origin is list:
        fits = isinstance(value, list | tuple) and not any(type_error(part, arguments[0]) for part in value)
        return None if fits else f"a list of {NAMES.get(arguments[0], arguments[0])} is needed"
    if hint is bool:
        return None if isinstance(value, bool) else "True or False is needed"
    if hint is int:
        return None if isinstance(value, numbers.Integral) and not isinstance(value, bool) else "an integer is needed"
    if hint is float:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        return None if fits else "a finite number is needed"
    return None if hint is not str or isinstance(value, str | os.PathLike) else "text is needed"


def out_of_bounds(f: dataclasses.Field, value: Any) -> list[str]:
    """What is wrong with the value of a field that has bounds; None is within all of them."""
    holds = {"least": operator.ge, "above": operator.gt, "most": operator.le}
    return [
        f"{f.name} is {value}; {BOUNDS[name].format(bound)}"
        for name, bound in f.metadata.get("bounds", {}).items()
        if value is not None and not holds[name](value, bound)
    ]


def suggestion(name: str, known: Iterable[str], otherwise: str = "choose from") -> str:
    """The nearest known name as a question, or all of them where none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean '{near[0]}'?" if near else f"{otherwise} {', '.join(known)}"
