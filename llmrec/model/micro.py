"""A micro causal LM, made on the spot: Qwen3 architecture, word-level tokenizer over the catalogue's titles.

It knows no language and is trained in full. With it the whole line runs in minutes on a CPU, without a download. The
vocabulary is at most a few thousand words, because on a CPU the output layer costs the most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llmrec.model.prompts import DEFAULT_INSTRUCTION

HEAD_DIM = 32
SPECIAL_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def word_tokenizer(texts: Iterable[str], max_words: int) -> PreTrainedTokenizerBase:
    """Make a lower-case word-level tokenizer of the most frequent words of texts and of the default instruction.

    Args:
        texts: Titles.
        max_words: Largest size of the vocabulary, special tokens included.

    Raises:
        ValueError: If the vocabulary does not hold the instruction.
    """
    core = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def words_of(text: str) -> list[str]:
        return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(text))]

    counts = Counter(word for text in texts for word in words_of(text))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    always = list(dict.fromkeys([*SPECIAL_TOKENS.values(), *words_of(DEFAULT_INSTRUCTION)]))
    if max_words < len(always):
        raise ValueError(
            f"micro_words is {max_words}; at least {len(always)} are needed for the instruction and the special tokens."
        )
    vocabulary = list(dict.fromkeys([*always, *frequent]))[:max_words]
    core.model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL_TOKENS)


def micro_model(tokenizer: PreTrainedTokenizerBase, layers: int, hidden_size: int, seed: int) -> PreTrainedModel:
    """Make a random Qwen3 causal LM with tied embeddings, in float32.

    Raises:
        ValueError: If `hidden_size` is not a multiple of the head size.
    """
    if hidden_size % HEAD_DIM or hidden_size < HEAD_DIM:
        raise ValueError(f"micro_hidden is {hidden_size}; it must be a positive multiple of {HEAD_DIM}.")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // HEAD_DIM,
        num_key_value_heads=hidden_size // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)
