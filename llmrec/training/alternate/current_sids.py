"""The semantic IDs of the moment, and everything in a run that follows them when they change.

Shapes: N items, L levels of the tokenizer, K codes of a level, E latent dimension.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from llmrec.model.history.sids import SidHistoryEncoder
from llmrec.sid.table import SidTable
from llmrec.sid.vocabulary import SidVocabulary
from llmrec.tokenizers.etegrec import EndToEnd
from llmrec.training.alternate.retokenize import match_codes, retokenize
from llmrec.training.alternate.swap_table import swap_table
from llmrec.training.sft.examples import HistoryCollator
from llmrec.training.validation import Validation


class CurrentSids:
    """Semantic IDs of the moment, with the collator and the validation that use them.

    Args:
        table: Semantic IDs that the LLM starts with.
        vocabulary: SID tokens of the LLM.
        tokenizer: Tokenizer that has made the semantic IDs.
        collator: Collator of the LLM's batches.
        validation: Validation of the run, if there is one.

    Attributes:
        codebooks: For each level, (K, E) code vectors that the table was made with.
    """

    def __init__(
        self,
        table: SidTable,
        vocabulary: SidVocabulary,
        tokenizer: EndToEnd,
        collator: HistoryCollator,
        validation: Validation | None,
    ):
        self.table, self.vocabulary, self.collator, self.validation = table, vocabulary, collator, validation
        self.codebooks = copy_codebooks(tokenizer)

    def renew(self, tokenizer: EndToEnd, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
        """Encode all items again; token rows, optimiser, collator and validation follow.

        Args:
            tokenizer: Tokenizer after a pass.
            model: LLM, whose token rows move in place.
            optimizer: Optimiser of the LLM, whose state moves with the rows.
            seed: Seed of the rows of new codes.

        Returns:
            Share of the items whose semantic ID has changed.

        Raises:
            ValueError: If the tokenizer has diverged or collapsed; nothing has changed then.
        """
        codebooks = copy_codebooks(tokenizer)
        if not all(codebook_KE.isfinite().all() for codebook_KE in codebooks):
            raise ValueError("the tokenizer has diverged: a codebook is not finite.")
        matches = [match_codes(old_KE, new_KE) for old_KE, new_KE in zip(self.codebooks, codebooks, strict=True)]
        new = retokenize(self.table, tokenizer.codes().numpy(), matches)
        encoder = swap_table(model, optimizer, self.vocabulary, new.table, new.old_codes, seed)
        self.codebooks = codebooks
        self._use(new.table, encoder)
        return new.churn

    def codes(self) -> np.ndarray:
        """(N, L + 1) int64 codes of all items, the suffix last."""
        return self.table.codes(np.arange(self.table.num_items))

    def restore(self, codes_NL: np.ndarray, codebooks: list[Tensor]) -> None:
        """Return to semantic IDs of a checkpoint, in whose weights the token rows have moved already.

        Args:
            codes_NL: (N, L + 1) int64 codes of all items, the suffix last.
            codebooks: For each level, (K, E) code vectors that they were made with.
        """
        table = SidTable(self.table.item_ids, codes_NL, level_sizes=self.table.level_sizes)
        self.codebooks = codebooks
        self._use(table, SidHistoryEncoder(table, self.vocabulary))

    def _use(self, table: SidTable, encoder: SidHistoryEncoder) -> None:
        self.table, self.collator.encoder = table, encoder
        if self.validation is not None:
            self.validation.use(table)


def copy_codebooks(tokenizer: EndToEnd) -> list[Tensor]:
    """Copy of the code vectors of each level, (K, E)."""
    return [codebook_KE.detach().clone() for codebook_KE in tokenizer.quantizer.levels]
