"""A byte-level BPE, as the LLMs that users bring have one, and a tiny LLM with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmrec.model.prompts import DEFAULT_INSTRUCTION
from tests.conftest import TITLES, tiny_llm


def byte_level_bpe(texts: Iterable[str] = TITLES, size: int = 320) -> PreTrainedTokenizerBase:
    """A BPE of GPT-2's kind, whose tokens begin with the space before a word."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator([*(f"; {text}" for text in texts), DEFAULT_INSTRUCTION], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def write_bpe_llm(path: Path, tied: bool = True) -> Path:
    """A tiny LLM with a byte-level BPE, as a user would bring it."""
    tokenizer = byte_level_bpe()
    tiny_llm(len(tokenizer), tied=tied, max_position_embeddings=512).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
