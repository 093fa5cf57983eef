"""Item rows of appended items: the mean of the rows of the items whose semantic ID begins alike the longest.

An appended item has no interactions, so its row cannot be trained. Items of one code prefix are neighbours in the views
that the codes were learned from, and the mean of their rows lets the new item be found by item rows at once. With the
next `llmrec sft` it trains like any other.

Shapes: N items of the new table, L levels, D hidden.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from llmrec.model.new_rows import fit_vocabulary
from llmrec.model.trained_rows import matrix_of
from llmrec.sid.item_tokens import ItemTokens
from llmrec.sid.table import EMPTY, SidTable


@torch.no_grad()
def append_item_rows(
    items: ItemTokens, old: SidTable, new: SidTable, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> ItemTokens:
    """Give the items of an appended table their tokens and rows, in the order of that table.

    Args:
        items: Item tokens of the checkpoint.
        old: Table of the checkpoint.
        new: The table with items added, in any order.
        tokenizer: Tokenizer of the checkpoint, which takes the new tokens.
        model: Model of the checkpoint, whose rows move to the items' new places; rows of new items are added.

    Returns:
        Tokens of the items of the new table.

    Raises:
        ValueError: If other tokens were added behind the item tokens.
    """
    if len(tokenizer) != items.block.stop:
        raise ValueError(
            "Other tokens follow the item tokens of the checkpoint, so that new items have no room behind them. Extend "
            "the original model by this SID table, and train again."
        )
    larger = dataclasses.replace(items, num_items=new.num_items)
    tokens = larger.tokens()[len(items.tokens()) :]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    fit_vocabulary(model, larger.block.stop)
    source_N = old.row_of.rows(new.item_ids)
    weights = map(matrix_of, (model.get_input_embeddings(), model.get_output_embeddings()))
    for weight in {id(matrix): matrix for matrix in weights}.values():
        weight[larger.block] = appended_rows(weight[items.block].clone(), source_N, new.codes(range(new.num_items)))
    return larger


def appended_rows(rows_OD: Tensor, source_N: np.ndarray, codes_NL: np.ndarray) -> Tensor:
    """Put the rows of old items in their new places, and means of them in those of new items.

    Args:
        rows_OD: (O, D) rows of the O old items.
        source_N: (N,) old place of each item; -1 for a new one.
        codes_NL: (N, L) codes of all items.

    Returns:
        (N, D). The row of a new item is the mean over the old items that share its longest prefix; if no old item has
        its first code, over all of them.
    """
    is_old = source_N != EMPTY
    result = rows_OD[torch.from_numpy(np.maximum(source_N, 0)).to(rows_OD.device)].float()
    trained, missing = result[torch.from_numpy(is_old).to(rows_OD.device)], ~is_old
    for length in range(codes_NL.shape[1], -1, -1):
        group_N = np.unique(codes_NL[:, :length], axis=0, return_inverse=True)[1].reshape(-1)
        group_of_old = torch.from_numpy(group_N[is_old]).to(rows_OD.device)
        sums = torch.zeros(group_N.max() + 1, rows_OD.shape[1], device=rows_OD.device)
        sums.index_add_(0, group_of_old, trained)
        counts = torch.bincount(group_of_old, minlength=len(sums))
        has_group = missing & (counts.cpu().numpy()[group_N] > 0)
        groups = torch.from_numpy(group_N[has_group]).to(rows_OD.device)
        result[torch.from_numpy(has_group).to(rows_OD.device)] = sums[groups] / counts[groups].unsqueeze(1)
        missing &= ~has_group
    return result.to(rows_OD.dtype)
