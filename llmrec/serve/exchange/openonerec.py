"""OpenOneRec: sid2pid.json or sid2iid.json, whose keys pack three codes into a number, and its prompt for videos.

An item is `<|sid_begin|><s_a_1><s_b_2><s_c_3><|sid_end|>`, and items stand side by side in one turn of a user. The
prompt is that of its fine-tuning on videos, without thinking; for products or advertisements, or the messages of its
benchmark, a file with another one can be given. That benchmark holds finished messages; here histories are tested in
the form of LC-Rec's.

Source: github.com/Kuaishou-OneRec/OpenOneRec, data/onerec_data/sft/video_rec.py and
benchmarks/benchmark/tasks/v1_0/recommendation (arXiv:2512.24762).
"""

from __future__ import annotations

from llmrec.configs import ImportConfig
from llmrec.serve.exchange.foreign import (
    SLOT,
    ForeignData,
    PromptTexts,
    check_numbers,
    examples_table,
    read_json_object,
    with_text,
)
from llmrec.serve.exchange.lcrec import leave_one_out, read_titles
from llmrec.sid.item_layout import BEGIN, END, ONEREC_TEMPLATE

BASE, NUM_LEVELS = 8192, 3  # a key is a · 8192² + b · 8192 + c
PROMPT = PromptTexts(
    "<|im_start|>system\n你是一个智能推荐助手，能够根据用户的浏览历史预测用户可能感兴趣的下一个内容。<|im_end|>\n"
    f"<|im_start|>user\n根据以下用户浏览记录，请预测用户接下来可能观看的内容：\n{SLOT}/no_think<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    separator="",
    begin=BEGIN,
    end=END,
    max_history=512,
)


def read_openonerec(config: ImportConfig) -> ForeignData:
    """Read the files of OpenOneRec.

    Raises:
        ValueError: If a file cannot be read, a key is no packed SID, or an item has two.
    """
    numbers: dict[str, list[int]] = {}
    for key, owners in read_json_object(config.index).items():
        for item_id in map(id_of, owners if isinstance(owners, list) else [owners]):
            if item_id in numbers:
                raise ValueError(f"'{config.index}' has two SIDs for item '{item_id[:40]}'; one is needed.")
            numbers[item_id] = unpacked(key, config.index)
    item_ids = list(numbers)
    titles = {} if config.info is None else read_titles(config.info)
    return ForeignData(
        item_ids,
        check_numbers(list(numbers.values()), item_ids, config.index),
        ONEREC_TEMPLATE,
        with_text(PROMPT, config),
        [titles.get(item_id, "") for item_id in item_ids],
        None if config.test is None else examples_table(leave_one_out(config.test)),
    )


def id_of(owner: object) -> str:
    """Id of an entry `{"pid": 7, "count": 3}`, `{"iid": 7}`, or of a bare id."""
    return str(owner.get("pid", owner.get("iid", ""))) if isinstance(owner, dict) else str(owner)


def unpacked(key: str, path: str) -> list[int]:
    """Codes of a packed key.

    Raises:
        ValueError: If it is no such number.

    >>> unpacked(str(1 * 8192**2 + 2 * 8192 + 3), "sid2pid.json")
    [1, 2, 3]
    """
    if not (key.isascii() and key.isdigit() and len(key) <= 15 and int(key) < BASE**NUM_LEVELS):
        raise ValueError(f"'{path}' has the key '{key[:40]}'; an integer a * 8192^2 + b * 8192 + c is needed.")
    packed = int(key)
    return [packed // BASE**2, packed // BASE % BASE, packed % BASE]
