"""Reading of a config from YAML and flags; unknown keys and wrong values are reported all at once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from llmrec.configs.options import Config, successor, suggestion
from llmrec.configs.values import parse, type_error

if TYPE_CHECKING:
    import yaml

AnyConfig = TypeVar("AnyConfig", bound=Config)
COMMAND_LINE = "the command line"


def load_config(
    cls: type[AnyConfig],
    path: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    blocks: Mapping[str, type[Config]] | None = None,
) -> AnyConfig:
    """Build a config from a YAML file and flags; flags win.

    Args:
        cls: One of the dataclasses of `llmrec.configs`.
        path: YAML file whose keys are fields of `cls`.
        overrides: Field -> value; text is read like a YAML scalar.
        blocks: Field of type `dict[str, object]` -> the class whose options it holds. A block is read and checked like
            the options of the stage itself. Flags that only the other class knows go into its block, so a command line
            needs no prefix: with `{"options": RQKMeans}`, `--codebook-size 64` is `codebook_size: 64` below `options:`.

    Raises:
        ValueError: With every problem at once: unknown keys (and the nearest valid one), old names (and the new one),
            wrong types, numbers out of bounds, missing keys.

    >>> from llmrec.configs import PrepareConfig
    >>> load_config(PrepareConfig, overrides={"out": "catalog", "k_core": "3"}).k_core
    3
    >>> load_config(PrepareConfig, overrides={"out": "catalog", "kcore": "3"})
    Traceback (most recent call last):
    ValueError: unknown key 'kcore' in the command line; did you mean 'k_core'?
    """
    given: dict[str, object] = {}
    origin: dict[str, str] = {}
    for source, values in ((str(path), read_yaml(path) if path else {}), (COMMAND_LINE, overrides or {})):
        for key, value in values.items():
            given[key], origin[key] = value, source
    values, problems = _read_options(cls, given, origin, blocks or {})
    if problems:
        raise ValueError("; ".join(problems))
    return cls(**values)


def _read_options(
    cls: type[Config],
    given: Mapping[str, object],
    origin: Mapping[str, str],
    blocks: Mapping[str, type[Config]],
    block: str = "",
    outside: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Parse and check the options given.

    Args:
        cls: Class that has the options.
        given: Option -> what YAML or a flag says.
        origin: Option -> file or command line that it comes from.
        blocks: Field -> class whose options it holds.
        block: Name of the block that the options stand in; empty for those of the stage itself.
        outside: Options of the stage that holds the block; those that `cls` has too stand there.

    Returns:
        Option -> value, and every problem.
    """
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, get_type_hints(cls)
    given, problems, known = dict(given), [], [name for name in fields if name not in (*blocks, *outside)]
    values: dict[str, Any] = {}  # of the types of the fields, which the caller does not know

    def place(key: str) -> str:
        """Key with its block, which a flag does not name."""
        return f"{block}.{key}" if block and origin.get(key) != COMMAND_LINE else key

    for name, kind in blocks.items():
        inner, origins, wrong = _take_block(name, kind, given, origin, fields)
        values[name], more = _read_options(kind, inner, origins, {}, name, fields)
        problems += [*wrong, *more]
        known += [f.name for f in dataclasses.fields(kind) if f.name not in fields]
    for key in given:
        if key in outside:
            problems.append(f"'{place(key)}' in {origin[key]} is an option of the stage; move it out of `{block}:`")
        elif key in fields:
            values[key] = parse(given[key], hints[key])
        else:
            names = known if origin[key] == COMMAND_LINE else [*known, *blocks]  # a block is no flag
            problems.append(f"unknown key '{place(key)}' in {origin[key]}; {_remedy(cls, key, names)}")
    for key, what in cls.value_errors({key: values[key] for key in given if key in values}).items():
        where = "" if origin[key] == COMMAND_LINE else f" (in {origin[key]})"
        problems.append(f"{place(key)} is {values[key]!r}; {what}{where}")
    for name, f in fields.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"'{place(name)}' is required: {f.metadata.get('help', '')}")
    return values, problems


def _take_block(
    name: str, kind: type[Config], given: dict[str, object], origin: Mapping[str, str], own: Collection[str]
) -> tuple[dict[str, object], dict[str, str], list[str]]:
    """Remove from `given` a block, and the flags that only the class of the block knows.

    Returns:
        Option -> what is given for it, option -> where that stands, and problems.
    """
    content, source = given.pop(name, None) or {}, origin.get(name, "")
    if source == COMMAND_LINE:
        return {}, {}, [f"unknown key '{name}' in {source}; give each option of the block as a flag of its own"]
    if not isinstance(content, Mapping):
        return {}, {}, [f"{name} is {content!r}; {type_error(content, dict[str, object])} (in {source})"]
    inner, origins, problems = dict(content), dict.fromkeys(content, source), []
    names = {f.name for f in dataclasses.fields(kind)} | kind.inherited("renamed").keys()
    for key in [key for key in given if key not in own and key in names]:
        value = given.pop(key)
        if origin[key] == COMMAND_LINE:
            inner[key], origins[key] = value, COMMAND_LINE
        else:
            problems.append(f"'{key}' in {origin[key]} is an option of the block '{name}'; move it below `{name}:`")
    return inner, origins, problems


def _remedy(cls: type[Config], key: str, known: Iterable[str]) -> str:
    """Sentence that says what to write instead of a key that does not exist."""
    renamed = cls.inherited("renamed")
    return successor(renamed[key]) if key in renamed else suggestion(key, known, otherwise="known keys:")


def read_yaml(path: str | Path) -> dict[str, Any]:  # text, None, lists and mappings
    """Read the keys and values of a YAML file; scalars stay text, so ids such as 0104257 and no keep their characters.

    Raises:
        ValueError: If the file is absent, is not UTF-8 or YAML, maps nothing, or sets a key more than once.
    """
    import yaml

    class TextLoader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class declares it)
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
    except OSError as error:
        raise ValueError(f"config file '{path}' cannot be read ({error.strerror}); check --config") from error
    except RecursionError:
        raise ValueError(f"config file '{path}' is nested too deeply; a config has two levels") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config file '{path}' is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise ValueError(
            f"config file '{path}' must map keys to values, one `key: value` per line, not hold a "
            f"{type(values).__name__}"
        )
    repeated = list(_repeated_keys(node, set()))
    if repeated:
        raise ValueError(f"config file '{path}' sets {', '.join(repeated)} more than once; keep one line of each")
    return {str(key): value for key, value in values.items()}


def _repeated_keys(node: yaml.MappingNode, seen: set[int]) -> Iterator[str]:
    """Keys that a mapping, or a mapping in it, has more than once; an alias may lead back to one in `seen`."""
    seen.add(id(node))
    yield from (key for key, count in Counter(key.value for key, _ in node.value).items() if count > 1)
    for _, value in node.value:
        if value.id == "mapping" and id(value) not in seen:
            yield from _repeated_keys(value, seen)
