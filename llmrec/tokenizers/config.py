"""From the options of `llmrec tokenize` to a tokenizer, and back."""

from __future__ import annotations

import dataclasses

from llmrec.configs import TokenizeConfig
from llmrec.configs.file import load_config
from llmrec.configs.options import Config, suggestion
from llmrec.tokenizers import ItemTokenizer, tokenizer_class

OPTIONS = "options"  # field of TokenizeConfig that holds the options of the method
OF_THE_STAGE = ("seed", "device")  # options of every tokenizer that stand outside of it


def option_blocks(method: str | None = None) -> dict[str, type[Config]]:
    """Argument `blocks` of `load_config` for `llmrec tokenize`: the field, and the class that knows its options.

    Args:
        method: Name of the tokenizer; the default of the stage when left out.

    Raises:
        ValueError: If there is no such method.
    """
    return {OPTIONS: tokenizer_class(method or TokenizeConfig.method)}


def method_fields(kind: type[Config]) -> list[dataclasses.Field]:
    """Fields of a tokenizer that stand in the block `options`."""
    return [f for f in dataclasses.fields(kind) if f.name not in OF_THE_STAGE]


def make_tokenizer(config: TokenizeConfig) -> ItemTokenizer:
    """Make the tokenizer that a config describes; it is not fitted.

    Raises:
        ValueError: If there is no such method, or with every problem of its options at once.
    """
    kind = tokenizer_class(config.method)
    known = [f.name for f in method_fields(kind)]
    given = [name for name in config.options if name not in kind.inherited("renamed")]  # load_config knows the others
    unknown = [f"method '{config.method}' has no option '{name}'; {suggestion(name, known, 'it has')}"
               for name in given if name not in known]  # fmt: skip
    if unknown:
        raise ValueError("; ".join(unknown) + ".")
    return load_config(kind, overrides={**config.options, "seed": config.seed, "device": config.device})


def with_defaults(config: TokenizeConfig) -> TokenizeConfig:
    """The same config with every option of its method, defaults included, so that they are part of a run's identity.

    Raises:
        ValueError: As `make_tokenizer`.
    """
    return dataclasses.replace(config, options=method_options(make_tokenizer(config)))


def method_options(tokenizer: ItemTokenizer) -> dict[str, object]:
    """Content of the block `options` that makes such a tokenizer, defaults included."""
    return {f.name: getattr(tokenizer, f.name) for f in method_fields(type(tokenizer))}
