"""The head of a vocabulary: which one answers, and what it needs before weights are added, trained or ranked by.

Shapes: N items, L levels.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from llmrec.model.backbone import causal_lm
from llmrec.model.heads.codes import CodeHeads, add_heads
from llmrec.model.heads.head import Head
from llmrec.model.heads.own_files import FILES, HEAD
from llmrec.model.heads.vectors import ItemVectors
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.model.item_vectors import read_items
from llmrec.runtime.device import from_host
from llmrec.sid.vocabulary import SidVocabulary


def add_head(model: PreTrainedModel, vocabulary: SidVocabulary) -> None:
    """Give a causal LM the weights that the head of its vocabulary needs, if it needs any."""
    if vocabulary.head is not None and vocabulary.head.kind == "codes":
        add_heads(model, vocabulary.num_levels)


def make_head(
    model: nn.Module, encoder: HistoryEncoder, vocabulary: SidVocabulary, device: torch.device
) -> Head | None:
    """Make the head that answers for a model, and let the model read items as the head needs; None without a head.

    Args:
        model: Causal LM or a PEFT model over one.
        encoder: Token ids of the items.
        vocabulary: Tokens of the codes, and the kind of head.
        device: Device that the model runs on, or will.

    Raises:
        ValueError: If the model lacks the weights of the head.
    """
    head = vocabulary.head
    if head is None:
        return None
    base = causal_lm(model)
    read_items(base, vocabulary.token_range, encoder.sid_tokens_NL, encoder.token_range.start)
    tokens_NL = from_host(encoder.sid_tokens_NL, device)
    if head.kind == "vectors":
        return ItemVectors(vocabulary.token_range, tokens_NL, head.temperature)
    if not hasattr(base, HEAD):
        raise ValueError(
            f"The model answers by the head 'codes', whose weights are absent: {FILES[HEAD]} has to lie beside the "
            "weights of the checkpoint. Restore it, or run `llmrec extend` and `llmrec sft` again."
        )
    codes_NL = tokens_NL - tokens_NL.new_tensor(vocabulary.starts)
    return CodeHeads(codes_NL.T.contiguous(), vocabulary, head.temperature)
