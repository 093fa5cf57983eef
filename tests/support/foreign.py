"""Checkpoints as other projects leave them: their tokenizer, their tokens, tiny random weights."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.conftest import tiny_llm

# As MiniOneRec's and LC-Rec's index.json: codes have gaps, two items share one SID, tokens stand in alphabetical order.
INDEX = {
    "0": ["<a_2>", "<b_0>", "<c_7>"], "1": ["<a_10>", "<b_3>", "<c_1>"], "2": ["<a_2>", "<b_3>", "<c_1>"],
    "3": ["<a_2>", "<b_0>", "<c_12>"], "4": ["<a_10>", "<b_3>", "<c_1>"], "5": ["<a_100>", "<b_0>", "<c_7>"],
}  # fmt: skip
ALPHABETICAL = sorted({token for tokens in INDEX.values() for token in tokens})


def byte_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Bytes as Qwen reads them, without merges."""
    vocabulary = {letter: i for i, letter in enumerate(["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<|endoftext|>", *special)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|endoftext|>")


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Letters as Llama reads them: a blank is part of a token, one stands before the first word, and <s> before all."""
    letters = ["▁", *map(chr, range(33, 127))]
    vocabulary = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters, *(f"<0x{b:02X}>" for b in range(256))])
    }
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_foreign(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    tokens: list[str],
    architecture: str = "qwen2",
    tied: bool = True,
) -> tuple:
    """Add tokens in the given order, and save a random model; its positions suffice for long prompts of bytes."""
    tokenizer.add_tokens(tokens)
    model = tiny_llm(len(tokenizer), architecture, tied, max_position_embeddings=1024)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


def save_onerec(directory):
    tokens = [f"<s_{letter}_{code}>" for letter in "abc" for code in range(2)]
    special = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
    tokens += ["<|sid_begin|>", "<|sid_end|>"]
    return save_foreign(directory, byte_tokenizer(*special), tokens, "qwen3")
