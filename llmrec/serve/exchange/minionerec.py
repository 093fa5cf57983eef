"""MiniOneRec: index.json, info.txt (`SID <tab> title <tab> id`), the test CSV, and the prompt that it tests with.

It trains on another sentence than it tests with ("The user has interacted with items …"); a file with that text can be
given as the prompt. Its own decoder goes on to a line break and the end of the sequence, whose probabilities it adds to
the score; here an answer is its semantic ID.

Source: github.com/AkaliKong/MiniOneRec, class EvalSidDataset of data.py, and evaluate.py.
"""

from __future__ import annotations

import io

import polars as pl

from llmrec.configs import ImportConfig
from llmrec.data.columns import HISTORY, SPLIT, TARGET, USER_ID
from llmrec.runtime.reading import reading
from llmrec.serve.exchange.foreign import SLOT, ForeignData, PromptTexts, read_letter_index, read_whole, with_text
from llmrec.sid.tokens.template import DEFAULT_TEMPLATE

PROMPT = PromptTexts(
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request. \n\n"
    "### Instruction:\nCan you predict the next possible item that the user may expect?\n\n"
    "### User Input: \nCan you predict the next possible item the user may expect, given the following chronological "
    f"interaction history: {SLOT}\n\n### Response:\n",
    separator=", ",
    max_history=10,
)


def read_minionerec(config: ImportConfig) -> ForeignData:
    """Read the files of MiniOneRec.

    Raises:
        ValueError: If a file cannot be read, or the files do not go together.
    """
    item_ids, numbers_NL = read_letter_index(config.index)
    titles = {} if config.info is None else read_info(config.info)
    examples = None if config.test is None else read_test(config.test)
    prompt = with_text(PROMPT, config)
    return ForeignData(
        item_ids, numbers_NL, DEFAULT_TEMPLATE, prompt, [titles.get(item_id, "") for item_id in item_ids], examples
    )


def read_info(path: str) -> dict[str, str]:
    """Read the title of each id from lines `SID <tab> title <tab> id`.

    Raises:
        ValueError: If a line has another form.
    """
    with reading(path, "a text file", "give MiniOneRec's info file"):
        lines = read_whole(path).decode().splitlines()
    fields = [line.split("\t") for line in lines if line.strip()]
    wrong = next((number for number, line in enumerate(fields, 1) if len(line) < 3), None)
    if wrong is not None:
        raise ValueError(f"'{path}' has {len(fields[wrong - 1])} fields in line {wrong}; SID, title and id are needed.")
    return {line[-1].strip(): "\t".join(line[1:-1]).strip() for line in fields}


def read_test(path: str) -> pl.DataFrame:
    """Read the held-out examples of a test CSV.

    Raises:
        ValueError: If it cannot be read, or lacks a column.
    """
    with reading(path, "a CSV file of MiniOneRec", "give its test CSV, with user_id, history_item_id and item_id"):
        rows = pl.read_csv(io.BytesIO(read_whole(path)), infer_schema=False)
        history = pl.col("history_item_id").str.json_decode(pl.List(pl.Int64)).cast(pl.List(pl.String))
        return rows.select(
            pl.col("user_id").alias(USER_ID),
            pl.lit("test").alias(SPLIT),
            history.alias(HISTORY),
            pl.col("item_id").alias(TARGET),
        )
