"""From the options of `llmrec tokenize` to a tokenizer, and back."""

from __future__ import annotations

import dataclasses

from llmrec.configs import TokenizeConfig
from llmrec.configs.file import load_config
from llmrec.configs.options import Config, suggestion
from llmrec.runtime.console import say
from llmrec.tokenizers import ItemTokenizer, tokenizer_class

OPTIONS = "options"  # field of TokenizeConfig that holds the options of the method
SIZE = "codebook_size"  # option of a tokenizer that learns codes
SUITED = 8  # items per code
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


def sized_for(config: TokenizeConfig, num_items: int) -> TokenizeConfig:
    """The same config with a codebook size that suits a small catalogue, unless the config gives one.

    The default of a method comes from its paper, whose catalogues are larger: 256 codes have no 226 items to be learned
    from. A code has SUITED items or more at every level, which the default gives from 2,048 items on.

    Args:
        config: Options of the stage.
        num_items: Size of the catalogue.
    """
    default = {f.name: f.default for f in method_fields(tokenizer_class(config.method))}.get(SIZE)
    if SIZE in config.options or not isinstance(default, int):
        return config
    size = suited_codebook_size(num_items, default)
    if size == default:
        return config
    say(
        f"tokenize: {size} codes per level instead of {default}, because {num_items} items are few: a code should "
        f"stand for about {SUITED} or more. --codebook-size sets another number."
    )
    return dataclasses.replace(config, options={**config.options, SIZE: size})


def suited_codebook_size(num_items: int, largest: int) -> int:
    """Number of codes that have SUITED items each on average.

    It is a power of two and at least 4, or `largest` if that many codes have as many items.

    >>> [suited_codebook_size(num_items, 256) for num_items in (10, 226, 1050, 10**6)]
    [4, 16, 128, 256]
    """
    fitting = max(1, num_items // SUITED)
    return largest if largest <= fitting else min(largest, max(4, 1 << (fitting.bit_length() - 1)))


def method_options(tokenizer: ItemTokenizer) -> dict[str, object]:
    """Content of the block `options` that makes such a tokenizer, defaults included."""
    return {f.name: getattr(tokenizer, f.name) for f in method_fields(type(tokenizer))}
