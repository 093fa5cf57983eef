"""Options: the fields of a config, with their explanation and their bounds.

A field with `help` metadata explains itself in `--help` and in the docs; `identity=False` marks what does not change a
result (where it is written, which device computes it), so that a run may be resumed with another value; `least`,
`above` and `most` bound a number.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import operator
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar

from llmrec.configs.values import type_error

BOUNDS = {
    "least": (operator.ge, "at least {} is needed"),
    "above": (operator.gt, "more than {} is needed"),
    "most": (operator.le, "at most {} is allowed"),
}
MAX_SEED = 2**32 - 1  # numpy takes no larger one


def option(
    help: str,
    default: Any = MISSING,  # of the type that the field is annotated with
    identity: bool = True,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:  # a field, which a dataclass takes in the place of a value of any type
    """A config field with its explanation; a list or dict as default is copied for each instance.

    Args:
        help: What the field means, for `--help` and the docs.
        default: Value if the option is left out; an option without a default is required.
        identity: True if another value makes another run, whose result cannot be resumed with this one.
        least: Smallest value allowed.
        above: Number that the value must exceed.
        most: Largest value allowed.
    """
    bounds = {k: v for k, v in {"least": least, "above": above, "most": most}.items() if v is not None}
    metadata = {"help": help, "identity": identity, "bounds": bounds}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Config:
    """Base of all configs. Wrong values are refused however a config is made, every problem at once.

    Attributes:
        renamed: Old name of an option -> its new name, or a sentence that starts with "removed:". A subclass declares
            its own; those of its bases hold too.
        renamed_values: Option -> old value -> new value, or a sentence that starts with "removed:".
    """

    renamed: ClassVar[dict[str, str]] = {}
    renamed_values: ClassVar[dict[str, dict[str, str]]] = {}

    def __post_init__(self) -> None:
        found = self.value_errors({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        problems = [f"{name} is {getattr(self, name)!r}; {what}" for name, what in found.items()] or self.problems()
        if problems:
            raise ValueError("; ".join(problems) + ".")

    @classmethod
    def value_errors(cls, values: Mapping[str, object]) -> dict[str, str]:
        """Find the options whose value has the wrong type, is out of bounds, or has an old name.

        Args:
            values: Option -> value; options that are left out are not checked.

        Returns:
            Option -> sentence that says what is needed.
        """
        hints, renamed = typing.get_type_hints(cls), cls.inherited("renamed_values")
        found = {}
        for f in dataclasses.fields(cls):
            if f.name in values:
                value, old = values[f.name], renamed.get(f.name, {})
                parts = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]
                new = next((successor(old[part]) for part in parts if part in old), None)
                what = new or type_error(value, hints[f.name]) or out_of_bounds(f, value)
                if what:
                    found[f.name] = what
        return found

    @classmethod
    def inherited(cls, attribute: str) -> dict[str, Any]:  # values are those of the attribute
        """Entries of a dict attribute of this class and its bases; the most derived class wins."""
        return {key: value for base in reversed(cls.__mro__) for key, value in vars(base).get(attribute, {}).items()}

    def problems(self) -> list[str]:
        """Sentences about options that do not go together, each valid by itself."""
        return []


@dataclass(kw_only=True)
class StageConfig:
    """Options of every stage that writes a directory; their config derives from this class and from Config."""

    out: str = option("Directory to write.", identity=False)
    overwrite: bool = option("Replace the result of another run in `out`.", False, identity=False)
    seed: int = option("Seed of everything random in this stage.", 0, least=0, most=MAX_SEED)


def out_of_bounds(f: dataclasses.Field, value: Any) -> str | None:  # numbers, where there are bounds
    """Sentence that says which bound of a field a value, or an entry of a list, breaks; None breaks no bound."""
    entries = value if isinstance(value, list | tuple) else [value]
    for name, bound in f.metadata.get("bounds", {}).items():
        holds, sentence = BOUNDS[name]
        if not all(entry is None or holds(entry, bound) for entry in entries):
            return sentence.format(bound)
    return None


def successor(new: str) -> str:
    """Sentence that says what to use instead of an old name.

    Args:
        new: The new name, or a sentence that starts with "removed:".
    """
    return new if new.startswith("removed:") else f"it is now called '{new}'"


def suggestion(name: str, known: Iterable[str], otherwise: str = "choose from") -> str:
    """Sentence that names the nearest known name, or all of them if none is near.

    A name is near if three quarters of its letters stand in the same order, or if it differs by one slip of the finger.

    >>> suggestion("Learning-rate", ["learning_rate", "epochs"]), suggestion("stf", ["sft", "dpo"])
    ("did you mean 'learning_rate'?", "did you mean 'sft'?")
    >>> suggestion("rate", ["rank", "learning_rate"])
    'choose from rank, learning_rate'
    """
    plain = {_plain(each): each for each in known}
    typed = _plain(str(name))  # a key may be of any type
    near = difflib.get_close_matches(typed, plain, n=1, cutoff=0.75) or [one for one in plain if _one_slip(typed, one)]
    return f"did you mean '{plain[near[0]]}'?" if near else f"{otherwise} {', '.join(plain.values())}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _one_slip(typed: str, meant: str) -> bool:
    """True if two neighbouring letters are exchanged, or one is wrong in a word of three or more."""
    if len(typed) != len(meant) or len(meant) < 3:
        return False
    wrong = [i for i, (one, other) in enumerate(zip(typed, meant, strict=True)) if one != other]
    if len(wrong) == 2 and wrong[1] == wrong[0] + 1:
        return typed[wrong[0]] == meant[wrong[1]] and typed[wrong[1]] == meant[wrong[0]]
    return len(wrong) == 1
