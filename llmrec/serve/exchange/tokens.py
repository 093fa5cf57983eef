"""The tokens of another project's checkpoint: one block per level, in place or after a permutation.

`SidVocabulary` needs each level's tokens side by side, and the levels one behind another. Where a project added them
so, nothing moves, whatever the order within a level: `ItemLayout.numbers` has the number in each name. Otherwise the
rows of embedding and output matrix between the first and the last of these tokens change places, and so do the ids in
the tokenizer; every token keeps its vector and its logit.

Shapes: N items, L levels, R rows that change places.
"""

from __future__ import annotations

import json
import re
from itertools import chain

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.serve.exchange.foreign import SLOT, ForeignData
from llmrec.sid.item_layout import ItemLayout
from llmrec.sid.tokens.template import end_of_sequence
from llmrec.sid.vocabulary import SidVocabulary


class LevelTokens:
    """Tokens of each level that a tokenizer has.

    Args:
        tokenizer: Tokenizer of the checkpoint.
        data: Names of the tokens of all items.
        source: Path of the checkpoint, for messages.

    Attributes:
        ids: For each level the token id of each number.

    Raises:
        ValueError: If a token of an item is absent, or the tokenizer has tokens of further levels.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: ForeignData, source: str):
        num_levels = data.numbers_NL.shape[1]
        pattern = re.escape(data.template).replace(r"\{letter\}", "([a-z])").replace(r"\{code\}", r"(\d{1,9})")
        self.ids: list[dict[int, int]] = [{} for _ in range(num_levels)]
        further = set()
        for token, token_id in tokenizer.get_vocab().items():
            match = re.fullmatch(pattern, token)
            if match and ord(match[1]) - ord("a") < num_levels:
                self.ids[ord(match[1]) - ord("a")][int(match[2])] = token_id
            elif match:
                further.add(token)
        for level, (known, numbers_N) in enumerate(zip(self.ids, data.numbers_NL.T, strict=True)):
            row = next((row for row, number in enumerate(numbers_N.tolist()) if number not in known), None)
            if row is not None:
                token = data.template.format(letter=chr(ord("a") + level), code=numbers_N[row])
                raise ValueError(
                    f"the tokenizer of '{source}' has no token '{token}', which the index has for item "
                    f"'{data.item_ids[row][:40]}'; give the index that this checkpoint was trained on."
                )
        if further:
            raise ValueError(
                f"the tokenizer of '{source}' has tokens such as '{min(further)}', of more than the {num_levels} "
                "levels of the index; give the index that this checkpoint was trained on."
            )

    def codes(self, numbers_NL: np.ndarray) -> np.ndarray:
        """(N, L) code of each number: the place of its token in the block of its level."""
        place = [{number: code for code, number in enumerate(level)} for level in self.numbers()]
        columns = [[place[level][number] for number in column] for level, column in enumerate(numbers_NL.T.tolist())]
        return np.array(columns, np.int64).T

    def numbers(self) -> list[list[int]]:
        """Numbers of each level in the order of their codes: of token ids where the blocks lie well, else ascending."""
        if self.new_order() is not None:
            return [sorted(level) for level in self.ids]
        return [sorted(level, key=level.__getitem__) for level in self.ids]

    @property
    def first(self) -> int:
        """Smallest token id."""
        return min(chain(*(level.values() for level in self.ids)))

    def new_order(self) -> list[int] | None:
        """Old ids, from `first` on, in their new order; None if all blocks lie side by side already."""
        blocks = [sorted(level.values()) for level in self.ids]
        size = sum(map(len, blocks))
        if list(chain(*blocks)) == list(range(self.first, self.first + size)):
            return None
        ordered = [level[number] for level in self.ids for number in sorted(level)]
        others = sorted(set(range(min(ordered), max(ordered) + 1)) - set(ordered))
        return ordered + others


def make_vocabulary(
    tokenizer: PreTrainedTokenizerBase, tokens: LevelTokens, data: ForeignData
) -> tuple[SidVocabulary, str]:
    """Make the vocabulary and its layout, by a tokenizer whose blocks lie side by side.

    Returns:
        The vocabulary, and the text of the prompt before a history.

    Raises:
        ValueError: If the tokenizer does not keep the parts of a prompt apart.
    """
    numbers, sizes = tokens.numbers(), tuple(map(len, tokens.ids))
    starts = tuple(tokens.first + int(before) for before in np.cumsum((0, *sizes[:-1])))
    prompt = data.prompt
    prefix, suffix = prompt.text.split(SLOT)
    marks = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (prompt.begin, prompt.end)]
    # Between texts of tokens a tokenizer may write a blank otherwise than at the start, so all is read in its place.
    first = enumerate(level[0] for level in numbers)
    sid = "".join(data.template.format(letter=chr(ord("a") + level), code=number) for level, number in first)
    item = prompt.begin + sid + prompt.end
    whole = tokenizer.encode(prefix + item + prompt.separator + item + suffix + prompt.begin + sid)
    before, between, behind = split_at(whole, list(starts))
    begin, end = marks
    layout = ItemLayout(
        separator=inner(between, end, begin),
        suffix=inner(behind, end, begin),
        begin=begin,
        end=end,
        numbers=None if all(each == list(range(len(each))) for each in numbers) else tuple(map(tuple, numbers)),
    )
    own = tokenizer.encode(prefix)
    own = own[:-1] if own and own[-1] == tokenizer.eos_token_id else own
    if [*own, *begin] != before:
        raise ValueError(f"the tokenizer joins the prompt '{prefix[-40:]}' with the item behind it.")
    vocabulary = SidVocabulary(sizes, starts, sizes, end_of_sequence(tokenizer), data.template, layout=layout)
    vocabulary.check(tokenizer)
    return vocabulary, prefix


def split_at(ids: list[int], sid: list[int]) -> list[list[int]]:
    """Token ids before each place where a SID stands.

    Raises:
        ValueError: If it does not stand there three times.
    """
    places = [place for place in range(len(ids)) if ids[place : place + len(sid)] == sid]
    if len(places) != 3:
        raise ValueError("the tokenizer does not read the tokens of an item as themselves within the prompt.")
    starts = [0, *(place + len(sid) for place in places)]
    return [ids[start:place] for start, place in zip(starts, places, strict=False)]


def inner(ids: list[int], end: tuple[int, ...], begin: tuple[int, ...]) -> tuple[int, ...]:
    """Token ids between the end of an item and the beginning of the next one."""
    return tuple(ids[len(end) : len(ids) - len(begin)])


def move_rows(model: PreTrainedModel, first: int, order: list[int]) -> None:
    """Let rows of embedding and output matrix change places, in place.

    Args:
        model: Causal LM.
        first: Smallest of the ids.
        order: Old ids in their new order.
    """
    modules: list[nn.Module] = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        modules.append(model.get_output_embeddings())
    with torch.no_grad():
        for parameter in (each for module in modules for each in module.parameters(recurse=False)):
            parameter[first : first + len(order)] = parameter[order].clone()


def move_ids(tokenizer: PreTrainedTokenizerBase, first: int, order: list[int]) -> None:
    """Give tokens the ids of their new places, in place.

    Raises:
        ValueError: If one of them is no added token, or has a role such as ending a sequence.
    """
    fast: Tokenizer = tokenizer.backend_tokenizer
    content = json.loads(fast.to_str())
    new = {old: first + place for place, old in enumerate(order)}
    added = {token["id"] for token in content["added_tokens"]}
    roles = {token_id for token_id in new if token_id in tokenizer.all_special_ids}
    if set(new) - added or roles:
        token = tokenizer.convert_ids_to_tokens(min(roles or set(new) - added))
        raise ValueError(
            f"the tokens of the levels lie apart, with '{token}' among them, which cannot be moved; add them to the "
            "tokenizer one behind another."
        )
    for token in content["added_tokens"]:
        token["id"] = new.get(token["id"], token["id"])
    content["added_tokens"].sort(key=lambda token: token["id"])
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict):  # an added token may stand there as well
        for name in [name for name, token_id in vocabulary.items() if token_id in new]:
            vocabulary[name] = new[vocabulary[name]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
