"""Sampling SIDs under the trie, with and without replacement, in one prefill and one block of tokens per level.

The distribution is the model's over the legal continuations of each prefix (`normalize_over="children"`), so that the
probabilities of all permitted SIDs sum to 1: GRPO's policy.

Without replacement, every prefix carries a Gumbel-perturbed log-probability, its key, and the prefixes with the largest
keys survive. The key of a prefix is the maximum of its continuations' keys, which makes the search exact: the SIDs that
remain are a sample of `num_samples` different ones, in the order in which they would be drawn.

Shapes: B prompts, M samples, W continuations of a prefix, T prompt tokens, P prefix tokens, L levels.

Source: Kool et al., Stochastic Beams and Where to Find Them (arXiv:1903.06059), appendix B.3 for the numerics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmrec.decoding.grammar import check_prompt_end
from llmrec.decoding.search import Beams, Continuations, Paths, SearchProblem
from llmrec.decoding.tree_forward import TreeForward, pad_right
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.backbone import causal_lm
from llmrec.sid.vocabulary import SidVocabulary

Generators = torch.Generator | Sequence[torch.Generator] | None  # one of all prompts, or one of each


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
    generator: Generators = None,
    leaf_filter: LeafFilter | None = None,
    prefix_ids: Tensor | None = None,
) -> Beams:
    """Draw SIDs for each prompt.

    Args:
        model: Causal LM, or a PEFT model over one.
        input_ids: (B, T) int64 prompts, padded on either side.
        attention_mask: (B, T) int64, 0 at padding; None for all ones.
        trie: Legal SIDs, on the model's device.
        vocabulary: Tokens of their codes.
        num_samples: Number of SIDs per prompt, M.
        replacement: Draw independently, so that a SID may come up again.
        temperature: Divisor of the logits, above 0.
        generator: Source of randomness, on the device of the prompts; one of all prompts, or one of each.
        leaf_filter: Leaves that each prompt may reach; all when left out.
        prefix_ids: (P,) int64 tokens that stand before every prompt, such as the instruction; they are run once.

    Returns:
        Beams in the order drawn: `codes` (B, M, L) int64, `scores` (B, M) float32, the log-probability of each SID at
        this temperature, and `leaves` (B, M) int64. Without replacement they are `Draws`, with `keys`; if fewer SIDs
        are legal, the last ones are unfilled. With replacement, none is filled if none is legal.

    Raises:
        ValueError: If `num_samples` or `temperature` is not positive, and as `tree_beam_search` does.

    Source: Kool et al., Stochastic Beams and Where to Find Them (arXiv:1903.06059).

    Examples:
        `model`, `tokenizer`, `table` and `sid_config` belong to a checkpoint of six items; see `SidConfig.load`.

        >>> import torch
        >>> from llmrec import SidTrie, tree_sample
        >>> ids, mask = sid_config.encode([[0, 1]], table, tokenizer)
        >>> generator = torch.Generator().manual_seed(0)
        >>> draws = tree_sample(model, ids, mask, SidTrie(table), sid_config.vocabulary, 6, generator=generator)
        >>> sorted(draws.leaves[0].tolist()), round(float(draws.scores.exp().sum()), 4)  # all SIDs, probability 1
        ([0, 1, 2, 3, 4, 5], 1.0)
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; at least 1 is needed.")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive.")
    problem = SearchProblem(causal_lm(model), trie, vocabulary, "children", temperature)
    problem.check_batch(input_ids, leaf_filter, prefix_ids)
    check_prompt_end(input_ids, trie, vocabulary, attention_mask)
    none = Beams.unfilled(len(input_ids), num_samples if replacement else 0, trie.num_levels, input_ids.device)
    sampler = _Independent(none, generator) if replacement else _Distinct(none, num_samples, generator)
    forward = TreeForward(problem.model, num_samples * (trie.num_levels - 1), prefix_ids)
    return _draw(problem, forward, sampler, *pad_right(input_ids, attention_mask), leaf_filter)


def _draw(
    problem: SearchProblem,
    forward: TreeForward,
    sampler: _Independent | _Distinct,
    input_ids: Tensor,
    lengths: Tensor,
    leaf_filter: LeafFilter | None,
) -> Beams:
    """Follow the prefixes that the sampler chooses; (B, T) ids padded on the right and (B,) lengths."""
    trie, mask = problem.trie, None if leaf_filter is None else leaf_filter.mask
    hidden = forward.prefill(input_ids, lengths)
    paths = Paths.start(len(input_ids), trie.num_levels, input_ids.device)
    for level in range(trie.num_levels):
        if level > 0:
            hidden = forward.advance(problem.tokens(paths, level - 1), paths.parents)
        continuations = problem.continuations(hidden, paths, level, mask)
        paths = paths.follow(continuations, sampler.choose(continuations), level)
        if trie.has_leaves(level + 1):
            sampler.collect(paths.complete(trie, level + 1))
    sampler.drawn.check()
    return sampler.drawn


def _gumbel(like: Tensor, generator: Generators) -> Tensor:
    drawn = torch.empty_like(like, memory_format=torch.contiguous_format)
    if isinstance(generator, Sequence):
        for row, own in zip(drawn, generator, strict=True):
            row.exponential_(generator=own)
    else:
        drawn.exponential_(generator=generator)
    return -drawn.log()


class _Independent:
    """Draws with replacement: sample i follows path i.

    Args:
        none: (B, M) unfilled beams.
        generator: Source of randomness.
    """

    def __init__(self, none: Beams, generator: Generators):
        self.drawn, self.generator = none, generator

    def choose(self, continuations: Continuations) -> Tensor:
        """(B, M) places among all continuations: one of each path's, or M of the only path's."""
        shape = self.drawn.scores.shape
        log_probs = continuations.log_probs.expand(*shape, -1)
        code = (log_probs + _gumbel(log_probs, self.generator)).argmax(dim=-1)
        if continuations.log_probs.shape[1] == 1:
            return code
        return torch.arange(shape[1], device=code.device) * log_probs.shape[2] + code

    def collect(self, complete: Beams) -> None:
        is_new, before = complete.leaves >= 0, self.drawn
        self.drawn = Beams(
            torch.where(is_new.unsqueeze(-1), complete.codes, before.codes),
            torch.where(is_new, complete.scores, before.scores),
            torch.where(is_new, complete.leaves, before.leaves),
        )


class _Distinct:
    """Draws without replacement: the prefixes with the largest perturbed log-probabilities.

    Args:
        none: (B, 0) unfilled beams.
        num_samples: M.
        generator: Source of randomness.
    """

    def __init__(self, none: Beams, num_samples: int, generator: Generators):
        self.num_samples, self.generator = num_samples, generator
        self.drawn = Draws(none.codes, none.scores, none.leaves, none.scores)
        # The root's key does not decide which SIDs are drawn, but it decides the distribution of their keys.
        root = torch.zeros(len(none.scores), 1, device=none.scores.device)
        self.keys = _gumbel(root, generator)  # of the paths

    def choose(self, continuations: Continuations) -> Tensor:
        """(B, x) places of the best among all continuations."""
        free = continuations.scores + _gumbel(continuations.scores, self.generator)  # (B, M, W)
        given = _given_maximum(free, self.keys.unsqueeze(-1))
        keys = given.masked_fill(continuations.nodes < 0, -torch.inf).flatten(1)
        self.keys, places = keys.topk(min(self.num_samples, keys.shape[1]), dim=1)
        return places

    def collect(self, complete: Beams) -> None:
        every = self.drawn.concatenated(complete)
        keys = torch.cat([self.drawn.keys, self.keys.masked_fill(complete.leaves < 0, -torch.inf)], dim=1)
        keys, best = keys.topk(min(self.num_samples, keys.shape[1]), dim=1)
        best_beams = every.take(best)
        self.drawn = Draws(best_beams.codes, best_beams.scores, best_beams.leaves, keys)


def _given_maximum(free: Tensor, maximum: Tensor) -> Tensor:
    """Condition Gumbel variables (…, W) on their largest being `maximum` (…, 1)."""
    gap = free - free.amax(dim=-1, keepdim=True)
    shift = maximum - free + torch.log1p(-gap.exp())
    return maximum - shift.clamp(min=0) - torch.log1p((-shift.abs()).exp())
