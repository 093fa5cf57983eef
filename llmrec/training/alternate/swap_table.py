"""Another SidTable for a model in the middle of training: token rows and optimiser state move with the codes.

A tokenizer that takes turns with the LLM (ETEGRec, arXiv:2409.05546) renames codes between two steps of the LLM: code 7
of a level may become code 3, split in two, or vanish. The dataset holds item rows, so nothing in it changes. The token
rows of the embedding and output matrix move to the new codes here, and so does the optimiser's state of each row.

Shapes: R token rows of SIDs, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.model.backbone import causal_lm
from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.model.new_rows import new_rows
from llmrec.sid.table import EMPTY, SidTable
from llmrec.sid.vocabulary import SidVocabulary


@torch.no_grad()
def swap_table(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    vocabulary: SidVocabulary,
    table: SidTable,
    old_codes: Sequence[Sequence[int] | np.ndarray],
    seed: int = 0,
) -> SidHistoryEncoder:
    """Rename the codes of a model that is being trained.

    Args:
        model: Causal LM or a PEFT model over one, changed in place.
        optimizer: Optimiser of the model; state of a parameter's shape (exp_avg, exp_avg_sq) moves with the rows.
        vocabulary: Token ids of the codes.
        table: New semantic IDs of the same items.
        old_codes: For each level, the old code whose rows each new code takes over. -1 stands for none: such rows are
            drawn anew, as in `extend`. There is one entry for each code of the level; spare rows behind them stay.
        seed: Seed of new rows.

    Returns:
        Encoder of the new table, for the collator.

    Raises:
        ValueError: If the table does not fit the vocabulary, or `old_codes` names a code that has no row.
    """
    encoder = SidHistoryEncoder(table, vocabulary)
    base = causal_lm(model)
    source_R = torch.from_numpy(_sources(vocabulary, old_codes))
    generator = torch.Generator().manual_seed(seed)
    first = vocabulary.starts[0]
    for matrix, trained_rows in _matrices(base):
        fresh = new_rows(matrix[:first], len(source_R), generator)
        _move(matrix[first : first + len(source_R)], source_R, fresh)
        _move_state(optimizer, matrix, slice(first, first + len(source_R)), source_R)
        for rows in trained_rows:  # PEFT's copy of them, in the order of the token ids
            _move(rows, source_R, fresh)
            _move_state(optimizer, rows, slice(None), source_R)
    return encoder


def _sources(vocabulary: SidVocabulary, old_codes: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """(R,) position, among the rows of SID tokens, of the row that each of them takes over; -1 for a new row."""
    if [len(codes) for codes in old_codes] != list(vocabulary.level_sizes):
        raise ValueError(
            f"old_codes has {[len(codes) for codes in old_codes]} entries per level, the vocabulary "
            f"{list(vocabulary.level_sizes)} codes; give one entry for each code."
        )
    source = np.arange(vocabulary.num_tokens)
    for level, codes in enumerate(old_codes):
        codes, size = np.asarray(codes, dtype=np.int64), vocabulary.block_sizes[level]
        if codes.min() < EMPTY or codes.max() >= size:
            raise ValueError(f"old_codes[{level}] must lie in [-1, {size}); found {codes.min()} … {codes.max()}.")
        start = vocabulary.starts[level] - vocabulary.starts[0]
        source[start : start + len(codes)] = np.where(codes == EMPTY, EMPTY, codes + start)
    return source


def _matrices(base: PreTrainedModel) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Embedding and output matrix, once if they are tied, each with PEFT's copies of its trained rows."""
    seen: set[int] = set()
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        copies: list[Tensor] = []
        if isinstance(module, TrainableTokensWrapper):
            adapter = module.token_adapter
            copies = [*adapter.trainable_tokens_delta.values(), *adapter.trainable_tokens_original.values()]
            module = adapter.base_layer
        weight = module.get_parameter("weight")
        if id(weight) not in seen:
            seen.add(id(weight))
            yield weight, copies


def _move(rows_RD: Tensor, source_R: Tensor, fresh_RD: Tensor) -> None:
    """Replace each row in place, by the row that it takes over or by a new one."""
    source = source_R.to(rows_RD.device)
    is_new = (source == EMPTY).unsqueeze(1)
    rows_RD.copy_(torch.where(is_new, fresh_RD.to(rows_RD), rows_RD[source.clamp(min=0)]))


def _move_state(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: slice, source_R: Tensor) -> None:
    """Move the optimiser's state of each weight with its row; for a new row it is zero."""
    for value in optimizer.state.get(parameter, {}).values():
        if torch.is_tensor(value) and value.shape == parameter.shape:
            _move(value[rows], source_R, torch.zeros_like(value[rows]))
