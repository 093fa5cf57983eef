"""Random models of real shapes, extended by a vocabulary of semantic IDs: 4 levels of 256 codes."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from llmrec.sid.vocabulary import SidVocabulary

NUM_LEVELS, CODEBOOK_SIZE, EOS, FIRST_TEXT_TOKEN = 4, 256, 2, 10
SIZES = (CODEBOOK_SIZE,) * NUM_LEVELS
SHAPES = {
    "qwen3-0.6b": ("qwen3", dict(vocab_size=151936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
                                 num_key_value_heads=8, head_dim=128, intermediate_size=3072)),
    "smollm2-135m": ("llama", dict(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
                                   num_key_value_heads=3, intermediate_size=1536)),
    "tiny": ("qwen3", dict(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, head_dim=16, intermediate_size=96)),
}  # fmt: skip


def vocabulary_of(shape: str) -> SidVocabulary:
    """The codes' tokens, behind the text tokens of a shape."""
    text_tokens = SHAPES[shape][1]["vocab_size"]
    starts = tuple(text_tokens + level * CODEBOOK_SIZE for level in range(NUM_LEVELS))
    return SidVocabulary(SIZES, starts, SIZES, EOS)


def config_of(shape: str) -> PretrainedConfig:
    """Config of an extended model with tied embeddings."""
    architecture, sizes = SHAPES[shape]
    sizes = sizes | {"vocab_size": vocabulary_of(shape).token_range.stop, "tie_word_embeddings": True}
    return CONFIG_MAPPING[architecture](**sizes, max_position_embeddings=4096)


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The same random weights at every call."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype).eval()
