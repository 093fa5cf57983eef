"""Weights that a head has of its own: added by `extend`, read with a checkpoint.

Shapes: N items, D dimension of their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmrec.model.heads.codes import ResidualHeads
from llmrec.model.heads.own_files import FILES, HEAD, fill, read_tensors
from llmrec.model.heads.projection import ItemProjection
from llmrec.sid.vocabulary import SidVocabulary


def add_head(
    model: PreTrainedModel, vocabulary: SidVocabulary, vectors_ND: Tensor | None = None, seed: int = 0
) -> None:
    """Give a causal LM the weights that the head of its vocabulary needs, if it needs any.

    Args:
        model: Causal LM, changed in place.
        vocabulary: Tokens of the codes, and the kind of head.
        vectors_ND: (N, D) vectors of the items, zero for those that have none; needed by `projection`.
        seed: Seed of weights that start at random.
    """
    kind = None if vocabulary.head is None else vocabulary.head.kind
    if kind == "codes":
        _put(model, ResidualHeads(vocabulary.num_levels, _hidden(model)))
    if kind == "projection":
        assert vectors_ND is not None, "read by the stage"
        projection, generator = ItemProjection(_hidden(model), vectors_ND), torch.Generator().manual_seed(seed)
        for layer in (projection.inner, projection.outer):
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        _put(model, projection)


def grow_vectors(model: PreTrainedModel, old_rows: Sequence[int], vectors_ND: Tensor) -> None:
    """Give a head `projection` the vectors of appended items; those that it had stay.

    Args:
        model: Causal LM, changed in place.
        old_rows: Item row, among the N, of each item that it had.
        vectors_ND: (N, D) vectors of all items.
    """
    head = getattr(model, HEAD)
    grown_ND = vectors_ND.to(head.vectors)
    grown_ND[torch.tensor(old_rows)] = head.vectors
    head.vectors = grown_ND


def load_head(model: PreTrainedModel, source: str | Path) -> None:
    """Put the head of a checkpoint, if it has weights, into its causal LM, in the type of the model.

    Raises:
        ValueError: If their file cannot be read, or their shapes do not belong to the model.
    """
    path = Path(source) / FILES[HEAD]
    if not path.is_file():
        return
    tensors = read_tensors(path)
    head = _head_of(tensors, _hidden(model))
    fill(head, tensors, path)
    _put(model, head)


def _head_of(tensors: Mapping[str, Tensor], hidden: int) -> nn.Module:
    """Make the module that tensors belong to, with other values: vectors of items tell a projection."""
    if "vectors" in tensors:
        return ItemProjection(hidden, torch.zeros_like(tensors["vectors"]))
    return ResidualHeads(len(tensors["weight"]) if "weight" in tensors else 0, hidden)


def _hidden(model: PreTrainedModel) -> int:
    return model.config.get_text_config().hidden_size


def _put(model: PreTrainedModel, head: nn.Module) -> None:
    model.add_module(HEAD, head.to(model.device, model.dtype))
