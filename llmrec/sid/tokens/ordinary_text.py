"""Ordinary text, such as titles, as tokens: without those of SIDs and items and special ones, whatever the text says.

A title may contain `<a_1>`, `</s>` or `<|im_end|>`. `split_special_tokens` of transformers is not enough: SID tokens
are no special ones, and a tokenizer whose own vocabulary lists `</s>` as a word finds it there. So text goes through a
copy of the tokenizer in which these tokens have names that no text contains. All other text gets the tokens that it
always had.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from llmrec.data.item_ids import BLOCK
from llmrec.runtime.manifest import JsonObject

if TYPE_CHECKING:  # it takes a second to import
    from transformers import PreTrainedTokenizerBase


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Tokenize ordinary text.

    Args:
        texts: Texts, which may contain anything.
        tokenizer: Tokenizer of a causal LM, extended or not.

    Returns:
        (tokens,) int64 token ids of each text, none of which is that of a SID or an item or a special token, except the
        one for unknown words.

    Raises:
        ValueError: If the tokenizer is not one of the library tokenizers, which cannot be copied without its tokens.

    Examples:
        >>> from llmrec import SidVocabulary
        >>> from llmrec.model.micro import word_tokenizer
        >>> from llmrec.sid.tokens.ordinary_text import encode_texts
        >>> tokenizer = word_tokenizer(["red apple < a _ 1 >"], max_words=64)
        >>> vocabulary = SidVocabulary.add_to(tokenizer, level_sizes=[4, 4])
        >>> tokenizer.convert_ids_to_tokens(tokenizer.encode("red <a_1> apple"))
        ['red', '<a_1>', 'apple']
        >>> tokenizer.convert_ids_to_tokens(encode_texts(["red <a_1> apple"], tokenizer)[0])
        ['red', '<', 'a', '_', '1', '>', 'apple']
    """
    core = _without_markers(tokenizer, len(tokenizer))
    found = []
    for first in range(0, len(texts), BLOCK):  # what the library returns of a text takes a kilobyte
        encodings = core.encode_batch(list(texts[first : first + BLOCK]), add_special_tokens=False)
        found += [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
    return found


def break_markers(texts: Iterable[str], markers: Iterable[str]) -> list[str]:
    """Put a space into the markers that texts contain, for an encoder that reads text and not tokens.

    Args:
        texts: Texts.
        markers: Strings that the encoder's tokenizer reads as one special token.

    Returns:
        The texts, in which no marker is left, also not in compatibility characters such as full-width letters. A text
        without one is returned as it is.
    """
    long_first = sorted(filter(lambda marker: len(marker) > 1, markers), key=len, reverse=True)
    if not long_first:
        return list(texts)
    pattern = re.compile("|".join(map(re.escape, long_first)))
    return [_broken(text, pattern) for text in texts]


def _broken(text: str, pattern: re.Pattern[str]) -> str:
    plain = unicodedata.normalize("NFKC", text)
    if pattern.search(plain) is None and pattern.search(text) is None:
        return text
    while pattern.search(plain):
        plain = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", plain)
    return plain


@functools.lru_cache(maxsize=1)  # several texts are encoded one after another, and a copy takes up to a second
def _without_markers(tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenizer:
    """Copy a tokenizer without its markers; `size` is its length, since tokens may be added to it later."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"{type(tokenizer).__name__} is no tokenizer of the library tokenizers, so titles cannot be kept apart "
            "from its special tokens. Save it as tokenizer.json, or leave out what reads titles (tasks, sid_init)."
        )
    content: JsonObject = json.loads(backend.to_str())
    kept = [i for i, token in enumerate(content["added_tokens"]) if not _is_marker(token)]
    markers = {token["content"] for token in content["added_tokens"] if _is_marker(token)}
    renamed = {marker: secrets.token_hex(16) for marker in markers - {content["model"].get("unk_token")}}
    # Those behind the last word are left out, as most are ours; between words they keep the place of their ids.
    content["added_tokens"] = content["added_tokens"][: max(kept, default=-1) + 1]
    for token in content["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    _rename(content["model"], renamed)
    content["truncation"] = content["padding"] = None
    return Tokenizer.from_str(json.dumps(content))


def _is_marker(token: JsonObject) -> bool:
    """Tell whether an added token is no word: special ones, and those with anything but letters, digits and spaces."""
    return token["special"] or not all(letter.isalnum() or letter.isspace() for letter in token["content"])


def _rename(model: JsonObject, names: Mapping[str, str]) -> None:
    """Give words of a model's own vocabulary other names; their ids stay, and no merge leads to them any more."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): i for word, i in vocabulary.items()}
    else:  # of a unigram model: [word, score] each, in the order of their ids
        model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
