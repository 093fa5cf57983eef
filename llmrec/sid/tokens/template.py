"""Template of SID tokens: the text of the token of a (level, code)."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it takes a second to import
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE = "<{letter}_{code}>"
LONG_TEMPLATE = "<{level}_{code}>"  # for more levels than there are letters
PIECE_TEMPLATE = "<p_{code}>"  # for codes that are the same at every level

OPENS, CLOSES = "<[{|", ">]}|"


def default_template(num_levels: int, one_block: bool) -> str:
    """Return the template of so many levels, or of codes that are the same at every level."""
    if one_block:
        return PIECE_TEMPLATE
    return DEFAULT_TEMPLATE if num_levels <= len(string.ascii_lowercase) else LONG_TEMPLATE


def check_template(template: str, num_levels: int, one_block: bool = False) -> None:
    """Refuse a template under which two codes would be the same token.

    Args:
        template: Text of a token.
        num_levels: Number of levels.
        one_block: Codes are the same at every level, so a token does not name its level.

    Raises:
        ValueError: If the level or the code is not part of the token.
    """
    fields = set(fields_of(template))
    if one_block:
        if fields != {"code"}:
            raise ValueError(f"template '{template}' must contain {{code}} alone. Example: '{PIECE_TEMPLATE}'.")
        return
    if "code" not in fields or not {"letter", "level"} & fields or fields - {"letter", "level", "code"}:
        raise ValueError(
            f"template '{template}' must contain {{code}} and {{letter}} or {{level}}, and nothing else in braces: the "
            f"level is part of the token. Example: '{DEFAULT_TEMPLATE}'."
        )
    if num_levels > 26 and "level" not in fields:
        raise ValueError(f"{num_levels} levels need {{level}} in the template; {{letter}} names 26.")


def fields_of(template: object) -> list[str]:
    """List the names in braces; one with a format, conversion, attribute or index counts with it, as no name.

    Raises:
        ValueError: If the template is no text, or its braces are unbalanced.
    """
    if not isinstance(template, str):
        raise ValueError(f"template {template!r} is no text.")
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"template '{template}' has unbalanced braces ({error}).") from error
    return [f"{name}:{spec}!{conversion}" if spec or conversion else str(name) for name, spec, conversion in parts]


def check_delimiters(tokens: Sequence[str]) -> None:
    """Refuse tokens that ordinary text contains, as `b1` in 'Vitamin b1': plain tokenizers match them inside words.

    Raises:
        ValueError: If a token does not stand in brackets, or contains a space or a control character.
    """
    for token in tokens:
        if token[0] not in OPENS or token[-1] not in CLOSES or " " in token or not token.isprintable():
            raise ValueError(
                f"the template makes tokens such as '{token}', which ordinary text may contain; a token has to stand "
                f"in brackets ({OPENS} … {CLOSES}), without spaces. Example: '{DEFAULT_TEMPLATE}'."
            )


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends an answer.

    Raises:
        ValueError: If the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token; `generate()` could not end an answer. Set one first.")
    return int(tokenizer.eos_token_id)


def check_new(tokens: Sequence[str], template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse tokens that cannot be added to a tokenizer.

    Raises:
        ValueError: If ordinary text may contain one, two are the same, or the tokenizer has one.
    """
    check_delimiters(tokens)
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"template '{template}' gives two codes the same token; try '{DEFAULT_TEMPLATE}'.")
    present = set(tokenizer.get_vocab()).intersection(tokens)
    if present:
        raise ValueError(
            f"The tokenizer already has the token '{min(present)}'. Extend the original model instead of an "
            "extended one, or give `SidVocabulary.add_to` another template."
        )


def check_tokens(names: Callable[[], list[str]], ids: range, template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not read tokens as themselves; see `SidVocabulary.check`.

    Args:
        names: Function that lists the text of every token, in the order of their ids.
        ids: Ids of the tokens.
        template: Template of the tokens, for the message.
        tokenizer: Tokenizer of the checkpoint.

    Raises:
        ValueError: If a token is absent, has another id, or is not read as itself among others.
    """
    if ids.stop > len(tokenizer):  # before so many names are made
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the SID and item tokens end at {ids.stop}: it does not belong "
            "to this checkpoint. Load the tokenizer that was saved with it, or run `llmrec extend` again."
        )
    tokens = names()
    read = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    wrong = next((pair for pair in zip(tokens, ids, read, strict=True) if pair[1] != pair[2]), None)
    if wrong is not None:
        raise ValueError(
            f"The tokenizer reads '{wrong[0]}' as token {wrong[2]}, not {wrong[1]}: it does not belong to this "
            "checkpoint. Load the tokenizer that was saved with it, or run `llmrec extend` again."
        )
    if tokenizer.encode("".join(tokens), add_special_tokens=False) != list(ids):
        raise ValueError(
            f"The tokenizer splits or merges neighbouring tokens of the template '{template}'; use another one, such "
            f"as '{DEFAULT_TEMPLATE}'."
        )
