"""The head of a vocabulary: which one answers, and what it needs before it is trained or ranked by.

Shapes: N items, L levels.
"""

from __future__ import annotations

import torch
from torch import nn

from llmrec.model.backbone import causal_lm
from llmrec.model.heads.codes import CodeHeads
from llmrec.model.heads.head import Head
from llmrec.model.heads.own_files import FILES, HEAD
from llmrec.model.heads.projection import HeadLoss, ProjectedState
from llmrec.model.heads.vectors import ItemVectors
from llmrec.model.history.encoder import HistoryEncoder
from llmrec.model.item_vectors import read_items
from llmrec.runtime.device import from_host
from llmrec.sid.vocabulary import SidVocabulary


def make_head(
    model: nn.Module,
    encoder: HistoryEncoder,
    vocabulary: SidVocabulary,
    device: torch.device,
    loss_by: HeadLoss = "softmax",
) -> Head | None:
    """Make the head that answers for a model, and let the model read items as the head needs; None without a head.

    Args:
        model: Causal LM or a PEFT model over one.
        encoder: Token ids of the items.
        vocabulary: Tokens of the codes, and the kind of head.
        device: Device that the model runs on, or will.
        loss_by: Loss of `projection`.

    Raises:
        ValueError: If the model lacks the weights of the head, or they are of other items.
    """
    head = vocabulary.head
    if head is None:
        return None
    base, tokens_NL = causal_lm(model), from_host(encoder.sid_tokens_NL, device)
    if head.by_codes:
        read_items(base, vocabulary.token_range, encoder.sid_tokens_NL, encoder.token_range.start)
    if head.kind == "vectors":
        return ItemVectors(vocabulary.token_range, tokens_NL, head.temperature)
    weights, file = getattr(base, HEAD, None), FILES[HEAD]
    if weights is None:
        raise ValueError(
            f"The model answers by the head '{head.kind}', whose weights are absent: {file} has to lie beside the "
            "weights of the checkpoint. Restore it, or run `llmrec extend` and `llmrec sft` again."
        )
    if head.kind == "projection":
        vectors_ND = weights.vectors
        if len(vectors_ND) != len(tokens_NL):
            raise ValueError(
                f"{file} has vectors of {len(vectors_ND)} items, the SID table has {len(tokens_NL)}: they do not go "
                "together. Restore both, or run `llmrec extend` and `llmrec sft` again."
            )
        return ProjectedState(vectors_ND.to(device), head.temperature, loss_by)
    codes_NL = tokens_NL - tokens_NL.new_tensor(vocabulary.starts)
    return CodeHeads(codes_NL.T.contiguous(), vocabulary, head.temperature)
