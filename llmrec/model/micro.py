"""A micro causal LM, made on the spot: Qwen3 architecture, word-level tokenizer over the catalogue's titles.

It knows no language and is trained in full. With it the whole line runs in minutes on a CPU, without a download. The
vocabulary is at most a few thousand words, because on a CPU the output layer costs the most.
"""

from __future__ import annotations

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llmrec.sid.tokens.llm_tokenizer import word_tokenizer as word_tokenizer

HEAD_DIM = 32


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
