"""Sampling SIDs under the trie, with and without replacement, in one prefill and one block of tokens per level.

The distribution is the model's over the legal continuations of each prefix (`normalize_over="children"`), so that the
probabilities of all permitted SIDs sum to 1: GRPO's policy.

Without replacement, every prefix carries a Gumbel-perturbed log-probability, its key, and the largest survive; a
prefix's is the maximum of its continuations', which makes the search exact: the SIDs that remain are a sample of
`num_samples` different ones, in the order in which they would be drawn.

Shapes: B rows, M samples, W continuations of a prefix, T prompt tokens, P prefix tokens, L levels.

Source: Kool et al., Stochastic Beams and Where to Find Them (arXiv:1903.06059), appendix B.3 for the numerics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.logits_processor import check_prompt_end
from llmrec.decoding.search import Beams, Continuations, Paths, SearchProblem
from llmrec.decoding.tree_forward import TreeForward, pad_right
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm
from llmrec.sid.vocabulary import SidVocabulary


@dataclass(frozen=True)
class Draws(Beams):
    """Beams drawn without replacement, in the order drawn.

    Attributes:
        keys: (B, M) perturbed log-probabilities, descending; -inf in unfilled beams. Each SID's is Gumbel-distributed
            about its log-probability and independent of the others', of which these are the largest.
    """

    keys: Tensor


@torch.no_grad()
def tree_sample(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    trie: SidTrie,
    vocabulary: SidVocabulary,
    num_samples: int,
    replacement: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    leaf_filter: LeafFilter | None = None,
    prefix_ids: Tensor | None = None,
) -> Beams:
    """Draw SIDs for each prompt.

    Args:
        model: Causal LM, or a PEFT model over one.
        input_ids: (B, T) prompts, padded on either side.
        attention_mask: (B, T), 0 at padding; all ones when left out.
        trie: Legal SIDs.
        vocabulary: Their tokens.
        num_samples: SIDs per prompt.
        replacement: Draw independently, so that a SID may come up again.
        temperature: Divides the logits.
        generator: Source of randomness, on the device of the prompts.
        leaf_filter: Leaves that each row may reach.
        prefix_ids: (P,) tokens that stand before every prompt, such as the instruction; they are run once.

    Returns:
        Beams in the order drawn, `scores` the log-probability of each SID at this temperature. Without replacement
        these are `Draws`, of which fewer than `num_samples` are filled where fewer SIDs are legal; with it, none is
        filled where none is legal.

    Raises:
        ValueError: If `num_samples` or `temperature` is not positive, and as `tree_beam_search` does.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; at least 1 is needed.")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive.")
    space = SearchProblem(causal_lm(model), trie, vocabulary, "children", temperature)
    space.check_batch(input_ids, leaf_filter, prefix_ids)
    check_prompt_end(input_ids, trie, vocabulary, attention_mask)
    ids, lengths = pad_right(input_ids, attention_mask)
    forward = TreeForward(space.model, num_samples * (trie.num_levels - 1), prefix_ids)
    hidden, paths = forward.prefill(ids, lengths), Paths.start(len(ids), trie.num_levels, ids.device)
    draw = (
        _Independent(len(ids), num_samples) if replacement else _Distinct(len(ids), num_samples, ids.device, generator)
    )
    for level in range(trie.num_levels):
        if level > 0:
            hidden = forward.advance(space.tokens(paths, level - 1), paths.parents)
        onward = space.continuations(hidden, paths, level, leaf_filter)
        paths = paths.follow(onward, draw.choose(onward, generator), level)
        if trie.has_leaves(level + 1):
            draw.collect(paths.complete(trie, level + 1))
    return draw.drawn if replacement else draw.with_keys()


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return -torch.empty_like(like, memory_format=torch.contiguous_format).exponential_(generator=generator).log()


class _Independent:
    """Draws with replacement: sample i follows path i."""

    def __init__(self, batch_size: int, num_samples: int):
        self.shape, self.drawn = (batch_size, num_samples), None

    def choose(self, onward: Continuations, generator: torch.Generator | None) -> Tensor:
        """(B, M) places among all continuations: one of each path's, or M of the only path's."""
        log_probs = onward.log_probs.expand(*self.shape, -1)
        code = (log_probs + _gumbel(log_probs, generator)).argmax(dim=-1)
        if onward.log_probs.shape[1] == 1:
            return code
        return torch.arange(self.shape[1], device=code.device) * log_probs.shape[2] + code

    def collect(self, complete: Beams) -> None:
        if self.drawn is None:
            self.drawn = complete
            return
        is_new, before = complete.leaves >= 0, self.drawn
        self.drawn = Beams(
            torch.where(is_new.unsqueeze(-1), complete.codes, before.codes),
            torch.where(is_new, complete.scores, before.scores),
            torch.where(is_new, complete.leaves, before.leaves),
        )


class _Distinct:
    """Draws without replacement: the prefixes with the largest perturbed log-probabilities."""

    def __init__(self, batch_size: int, num_samples: int, device: torch.device, generator: torch.Generator | None):
        self.num_samples, self.drawn = num_samples, None
        # The root's decides nothing about which SIDs are drawn, but the distribution of all the others'.
        self.keys = _gumbel(torch.zeros(batch_size, 1, device=device), generator)  # of the paths
        self.drawn_keys: Tensor | None = None

    def choose(self, onward: Continuations, generator: torch.Generator | None) -> Tensor:
        """(B, x) places of the best among all continuations."""
        free = onward.scores + _gumbel(onward.scores, generator)  # (B, M, W)
        keys = _given_maximum(free, self.keys.unsqueeze(-1)).masked_fill(onward.nodes < 0, -torch.inf).flatten(1)
        self.keys, chosen = keys.topk(min(self.num_samples, keys.shape[1]), dim=1)
        return chosen

    def collect(self, complete: Beams) -> None:
        keys = self.keys.masked_fill(complete.leaves < 0, -torch.inf)
        if self.drawn is not None:
            complete = self.drawn.concatenated(complete)
            keys = torch.cat([self.drawn_keys, keys], dim=1)
        self.drawn_keys, best = keys.topk(min(self.num_samples, keys.shape[1]), dim=1)
        self.drawn = complete.take(best)

    def with_keys(self) -> Draws:
        return Draws(self.drawn.codes, self.drawn.scores, self.drawn.leaves, self.drawn_keys)


def _given_maximum(free: Tensor, maximum: Tensor) -> Tensor:
    """Gumbel variables (…, W) as they are given that the largest of them is `maximum` (…, 1)."""
    gap = free - free.amax(dim=-1, keepdim=True)
    shift = maximum - free + torch.log1p(-gap.exp())
    return maximum - shift.clamp(min=0) - torch.log1p((-shift.abs()).exp())
