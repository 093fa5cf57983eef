"""Reading a stage config from flat YAML and flags: unknown keys, wrong types and values are errors, all at once."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections import Counter
from dataclasses import MISSING
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmrec.configs.options import out_of_bounds, suggestion


def load_config(cls: type, path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Any:
    """Build a stage config from a flat YAML file and flags; flags win.

    Args:
        cls: One of the dataclasses of `llmrec.configs`.
        path: YAML file whose keys are fields of `cls`.
        overrides: Field -> value; strings are parsed like YAML scalars.

    Raises:
        ValueError: With every problem at once: unknown keys (and the nearest valid one), wrong types, numbers out of
            bounds, missing keys.
    """
    given, origin = {}, {}
    for source, values in ((str(path), read_yaml(path) if path else {}), ("the command line", overrides or {})):
        for key, value in values.items():
            given[key], origin[key] = value, source
    cls = cls.completed(given)
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    problems = []
    for key in list(given):
        if key not in fields:
            hint = suggestion(key, fields, otherwise="known keys:")
            problems.append(f"unknown key '{key}' in {origin[key]}; {hint}")
            continue
        try:
            given[key] = _convert(given[key], hints[key])
            problems += out_of_bounds(fields[key], given[key])
        except ValueError as error:
            problems.append(f"'{key}' in {origin[key]} {error}")
    for name, f in fields.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"'{name}' is required: {f.metadata.get('help', '')}")
    if problems:
        raise ValueError("; ".join(problems))
    return cls(**given)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Keys and values of a flat YAML file; scalars stay text, so that an id as 0104257 or no keeps its characters."""
    import yaml

    class TextLoader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        text = Path(path).read_text(encoding="utf-8")
        values, node = yaml.load(text, TextLoader), yaml.compose(text, TextLoader)
    except FileNotFoundError:
        raise ValueError(f"config file '{path}' does not exist; check --config") from None
    except IsADirectoryError:
        raise ValueError(f"config file '{path}' is a directory; give a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config file '{path}' is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(
            f"config file '{path}' must map keys to values, one `key: value` per line, not hold a "
            f"{type(values).__name__}"
        )
    repeated = [key for key, count in Counter(key.value for key, _ in node.value).items() if count > 1]
    if repeated:
        raise ValueError(f"config file '{path}' sets {', '.join(repeated)} more than once; keep one line of each")
    return {str(key): value for key, value in values.items()}


def _convert(value: Any, hint: Any) -> Any:
    """Value of a field from what YAML or a flag gave; no silent truncation (2.5 is no int, 'no' is no str list)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "null":
            return None
        return _convert(value, next(a for a in arguments if a is not types.NoneType))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"is {value!r}; choose from {', '.join(map(str, arguments))}")
        return value
    if origin is list:
        if isinstance(value, str):
            value = [part for part in value.replace(",", " ").split() if part]
        if not isinstance(value, list):
            raise ValueError(f"is {value!r}; a list is needed")
        return [_convert(part, arguments[0]) for part in value]
    if hint is bool:
        named = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in named:
            return named[value.lower()]
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}; true or false is needed")
        return value
    if hint in (int, float):
        try:
            number = float(value)
            if isinstance(value, bool) or not math.isfinite(number) or (hint is int and not number.is_integer()):
                raise ValueError
            return number if hint is float else int(value) if str(value).lstrip("+-").isdigit() else int(number)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"is {value!r}; {'an integer' if hint is int else 'a number'} is needed") from None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"is {value!r}; text is needed")
    return str(value)
