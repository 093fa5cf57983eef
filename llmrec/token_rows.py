"""New rows of the embedding and output matrix for the tokens of semantic IDs.

Rows are the mean of the old ones plus Gaussian noise at the old rows' standard deviation. The resize of transformers
would draw them 1e-9 of that apart (pairwise cosine 1.000000), so that codes look alike at step 0.

Shapes: V rows of ordinary tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.vocab import SidVocabulary

ROW_MULTIPLE = 64  # matrix multiplications prefer vocabularies of this multiple


def new_rows(old_VD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Distinct rows at the scale of the old ones.

    Args:
        old_VD: (V, D) rows of ordinary tokens.
        count: Rows to draw.
        generator: CPU generator.

    Returns:
        (count, D), in the type and on the device of the old rows.
    """
    old = old_VD.float()
    noise = torch.randn(count, old.shape[1], generator=generator).to(old.device)
    return (old.mean(dim=0) + old.std(dim=0) * noise).to(old_VD.dtype)


@torch.no_grad()
def add_rows(model: PreTrainedModel, vocabulary: SidVocabulary, seed: int) -> None:
    """Give every SID token a row of its own in the embedding and output matrix; a tied pair stays tied.

    Args:
        model: Causal LM, changed in place.
        vocabulary: Tokens whose rows are written.
        seed: Seed of the noise.
    """
    old_size, needed = vocabulary.starts[0], vocabulary.token_range.stop
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(-(-needed // ROW_MULTIPLE) * ROW_MULTIPLE, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in matrices.values():
        weight[old_size:] = new_rows(weight[:old_size], len(weight) - old_size, generator)
