"""Common parts of beam search and sampling over the trie: prefixes, their continuations, and complete SIDs.

Shapes are fixed by the arguments and nothing is read back to the host, so that a whole search can be captured in one
CUDA graph, as `llmrec.decoding.decoder` does.

Shapes: B prompts, T prompt tokens, P prefix tokens, M prefixes, W continuations of a prefix, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.tree_attention import check_attention
from llmrec.decoding.trial import check_search
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.leaf_mask import LeafMask
from llmrec.decoding.trie.lookups import ROOT
from llmrec.decoding.trie.trie import SidTrie
from llmrec.evaluation.ranking import ScoresNotFinite
from llmrec.model.backbone import check_context, check_rows
from llmrec.model.code_scores import code_log_probs
from llmrec.sid.answer_head import refuse_head
from llmrec.sid.normalization import NormalizeOver, check_length_penalty, check_normalize_over
from llmrec.sid.table import EMPTY
from llmrec.sid.vocabulary import SidVocabulary


@dataclass(frozen=True)
class Beams:
    """Complete SIDs of each prompt, best first.

    Attributes:
        codes: (B, M, L) codes; -1 beyond a SID's length and in unfilled beams.
        scores: (B, M) summed log-probabilities; -inf in unfilled beams.
        leaves: (B, M) leaf rank in the trie; -1 in unfilled beams.
    """

    codes: Tensor
    scores: Tensor
    leaves: Tensor

    @classmethod
    def unfilled(cls, batch_size: int, num_beams: int, num_levels: int, device: torch.device) -> Beams:
        """Make beams of which none is filled."""
        return Beams(
            torch.full((batch_size, num_beams, num_levels), EMPTY, device=device),
            torch.full((batch_size, num_beams), -torch.inf, device=device),
            torch.full((batch_size, num_beams), -1, device=device),
        )

    def divided(self, by: float) -> Beams:
        """Divide all scores by a number."""
        return self if by == 1 else Beams(self.codes, self.scores / by, self.leaves)

    def take(self, slots: Tensor) -> Beams:
        """Select beams of each prompt by their (B, x) places."""
        codes = self.codes.gather(1, slots.unsqueeze(-1).expand(-1, -1, self.codes.shape[2]))
        return Beams(codes, self.scores.gather(1, slots), self.leaves.gather(1, slots))

    def check(self) -> None:
        """Refuse beams by whose scores nothing can be ranked; it waits for the device.

        Raises:
            ScoresNotFinite: If a score is NaN.
        """
        if bool(self.scores.isnan().any()):
            row = int(self.scores.isnan().any(dim=1).nonzero()[0])
            raise ScoresNotFinite(
                f"The model gives SIDs the score NaN after the prompt of row {row}: it overflows, or weights are not "
                "finite, as after training that diverged. Use the model in float32, or weights from before."
            )

    def concatenated(self, others: Beams) -> Beams:
        """Put the beams of `others` behind these, prompt by prompt."""
        pairs = ((self.codes, others.codes), (self.scores, others.scores), (self.leaves, others.leaves))
        return Beams(*(torch.cat(pair, dim=1) for pair in pairs))


def fuse_ranks(leaves: Tensor, num_leaves: int) -> tuple[Tensor, Tensor]:
    """Merge the lists of several searches for the same answer by the ranks of their leaves.

    A leaf has the credit 1 / log2(rank + 2) of each list that has it, with ranks from 0.

    Args:
        leaves: (B, Q, M) leaves of Q searches, best first; -1 in unfilled beams.
        num_leaves: Number of leaves of the trie.

    Returns:
        (B, M) int64 leaves with the most credit, best first, the first of the trie among equals, -1 where no more have
        any; and (B, M) float32 scores, the log of a leaf's share of all credit that could be given.

    Source: ActionPiece (arXiv:2502.13581), section 3.4, which sums these credits over segmentations.
    """
    batch_size, num_lists, width = leaves.shape
    credit_M = 1 / torch.arange(2, width + 2, device=leaves.device, dtype=torch.float32).log2()
    places = torch.where(leaves < 0, num_leaves, leaves)  # unfilled beams go to a place behind
    total = credit_M.new_zeros(batch_size, num_leaves + 1)
    for number in range(num_lists):  # one after another: a list has a leaf once, so sums have one order
        total.scatter_add_(1, places[:, number], credit_M.expand(batch_size, -1))
    found = places.flatten(1).sort(dim=1).values  # ascending, so that a stable sort by credit settles equals
    is_again = found.diff(dim=1, prepend=found.new_full((batch_size, 1), -1)) == 0
    credit = total.gather(1, found).masked_fill(is_again | (found == num_leaves), 0)
    best = credit.sort(dim=1, descending=True, stable=True)
    values, order = best.values[:, : min(width, num_leaves)], best.indices[:, : min(width, num_leaves)]
    return found.gather(1, order).masked_fill(values == 0, -1), (values / (num_lists * credit_M.sum())).log()


@dataclass(frozen=True)
class Continuations:
    """Codes that may follow each prefix, (B, M, W) each.

    Attributes:
        codes: Codes of the level.
        nodes: Trie nodes that the codes lead to; -1 in a slot without a legal code.
        log_probs: Log-probabilities of the codes; -inf in such a slot.
        scores: Sums of these and the scores of the prefixes.
    """

    codes: Tensor
    nodes: Tensor
    log_probs: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Paths:
    """Prefixes of the same length that a search follows.

    Attributes:
        codes: (B, M, L) codes so far, -1 behind them.
        nodes: (B, M) trie nodes; -1 if a prompt has fewer legal prefixes.
        scores: (B, M) summed log-probabilities; -inf if the node is -1.
        parents: (B, M) place of the prefix that each one continues, among those that are one code shorter.
    """

    codes: Tensor
    nodes: Tensor
    scores: Tensor
    parents: Tensor

    @classmethod
    def start(cls, batch_size: int, num_levels: int, device: torch.device) -> Paths:
        """Start with the empty prefix of each prompt."""
        shape = (batch_size, 1)
        return cls(
            torch.full((*shape, num_levels), EMPTY, device=device),
            torch.full(shape, ROOT, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
        )

    def follow(self, continuations: Continuations, places: Tensor, level: int) -> Paths:
        """Extend the prefixes by some of their continuations.

        Args:
            continuations: Continuations of these prefixes.
            places: (B, x) places among the M * W continuations of a prompt.
            level: Level of their codes.

        Returns:
            x prefixes of each prompt.
        """
        parents = places // continuations.codes.shape[2]
        scores = continuations.scores.flatten(1).gather(1, places)
        nodes = continuations.nodes.flatten(1).gather(1, places).masked_fill(scores.isneginf(), -1)
        code = continuations.codes.flatten(1).gather(1, places).masked_fill(nodes < 0, EMPTY)
        codes = self.codes.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.codes.shape[2]))
        codes[:, :, level] = code
        return Paths(codes, nodes, scores, parents)

    def complete(self, trie: SidTrie, depth: int) -> Beams:
        """Return the prefixes that are complete SIDs as beams; the others are unfilled."""
        is_leaf = trie.is_leaf(self.nodes, depth)
        return Beams(
            self.codes.masked_fill(~is_leaf.unsqueeze(-1), EMPTY),
            self.scores.masked_fill(~is_leaf, -torch.inf),
            trie.leaf_range(self.nodes, depth)[0].masked_fill(~is_leaf, -1),
        )


@dataclass(frozen=True)
class SearchProblem:
    """A search over the SIDs of a trie, scored by a model.

    Args:
        model: Causal LM.
        trie: Legal SIDs.
        vocabulary: Tokens of their codes.
        normalize_over: Tokens that a code's probability is normalised over; see `llmrec.sid.normalization`.
        temperature: Divisor of the logits.
        compiled: Fuse operations by `torch.compile`.
        length_penalty: Power of its number of codes that the score of a complete SID is divided by.

    Raises:
        ValueError: If the model answers by a head or cannot attend along a tree, or model or vocabulary lack codes of
            the trie.
    """

    model: PreTrainedModel
    trie: SidTrie
    vocabulary: SidVocabulary
    normalize_over: NormalizeOver
    temperature: float = 1.0
    compiled: bool = False
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_normalize_over(self.normalize_over)
        check_length_penalty(self.length_penalty)
        refuse_head(self.vocabulary.head, "A search over codes")
        self.vocabulary.check_table(self.trie)
        check_attention(self.model)
        check_rows(self.model, self.vocabulary.num_rows)
        check_search(self.model)

    def check_batch(self, input_ids: Tensor, leaf_filter: LeafFilter | None, prefix_ids: Tensor | None) -> None:
        """Refuse a batch whose shapes do not fit.

        Raises:
            ValueError: If prompt and SID do not fit the model's context, or the filter is of another batch or trie.
        """
        offset = 0 if prefix_ids is None else len(prefix_ids)
        check_context(self.model, offset + input_ids.shape[1] + self.trie.num_levels)
        if leaf_filter is not None:
            leaf_filter.check(self.trie, len(input_ids))

    def continuations(self, hidden: Tensor, paths: Paths, level: int, mask: LeafMask | None) -> Continuations:
        """Score the codes that may follow prefixes.

        Args:
            hidden: (B, M, hidden) states that predict the code of the level.
            paths: Prefixes of `level` codes.
            level: Level of the codes.
            mask: Leaves that each prompt may reach; all when left out.
        """
        codes, children = self.trie.expand(paths.nodes, level)
        legal = children >= 0
        if mask is not None:
            legal &= mask.permits(*self.trie.leaf_range(children, level + 1))
        log_probs = code_log_probs(
            self.model,
            hidden,
            self.vocabulary,
            level,
            codes,
            legal,
            self.normalize_over,
            self.temperature,
            self.compiled,
        )
        # Of a prefix whose score is NaN, only legal codes may inherit it: it has to reach a leaf to be seen.
        scores = (paths.scores.unsqueeze(-1) + log_probs).masked_fill(~legal, -torch.inf)
        return Continuations(codes, children.masked_fill(~legal, -1), log_probs, scores)

    def tokens(self, paths: Paths, level: int) -> Tensor:
        """(B, M) tokens of the codes at a level; of a prefix without a code, any token of the level."""
        return self.vocabulary.tokens_at(level, paths.codes[:, :, level].clamp(min=0))
