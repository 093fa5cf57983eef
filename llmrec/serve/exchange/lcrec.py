"""LC-Rec: index.json, item.json (titles), inter.json (`{user: [item, …]}`, oldest first), and its first prompt.

LC-Rec tests with each of 17 prompts and reports the mean; the first one is used here, and a file with another one can
be given. Its decoder allows every code of a level, so it may write semantic IDs that no item has; here the trie allows
those of items alone. A fourth level `<d_…>`, which keeps items apart, is a level like the others.

Source: github.com/zhengbw0324/LC-Rec, class SeqRecDataset of data.py, prompt.py (LC-Rec, arXiv:2311.09049).
"""

from __future__ import annotations

from collections.abc import Iterator

from llmrec.configs import ImportConfig
from llmrec.serve.exchange.foreign import (
    SLOT,
    ForeignData,
    PromptTexts,
    examples_table,
    read_json_object,
    read_letter_index,
    with_text,
)
from llmrec.sid.tokens.template import DEFAULT_TEMPLATE

PROMPT = PromptTexts(
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    f"### Instruction:\nThe user has interacted with items {SLOT} in chronological order. Can you predict the next "
    "possible item that the user may expect?\n\n### Response:",
    separator=", ",
    max_history=20,
)


def read_lcrec(config: ImportConfig) -> ForeignData:
    """Read the files of LC-Rec.

    Raises:
        ValueError: If a file cannot be read, or the files do not go together.
    """
    item_ids, numbers_NL = read_letter_index(config.index)
    titles = {} if config.info is None else read_titles(config.info)
    examples = None if config.test is None else examples_table(leave_one_out(config.test))
    prompt = with_text(PROMPT, config)
    return ForeignData(
        item_ids, numbers_NL, DEFAULT_TEMPLATE, prompt, [titles.get(item_id, "") for item_id in item_ids], examples
    )


def read_titles(path: str) -> dict[str, str]:
    """Read titles from `{item_id: title}` or `{item_id: {"title": title, …}}`."""
    values = read_json_object(path).items()
    return {key: str(value.get("title") or "") if isinstance(value, dict) else str(value) for key, value in values}


def leave_one_out(path: str) -> Iterator[tuple[str, str, list[str], str]]:
    """Examples of inter.json: the last item of a user is tested, the one before it is valid, the rest trains.

    Raises:
        ValueError: If a user has no list of items.
    """
    for user, items in read_json_object(path).items():
        if not isinstance(items, list) or not all(isinstance(item, int | str) for item in items):
            raise ValueError(f"'{path}' has {str(items)[:80]!r} for user '{user[:40]}'; a list of items is needed.")
        ids = [str(item) for item in items]
        for split, back in (("train", 3), ("valid", 2), ("test", 1)):
            if len(ids) > back:
                yield user, split, ids[:-back], ids[-back]
