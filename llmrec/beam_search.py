"""Tree beam search: the best SIDs of each prompt, in one prefill and one small block of tokens per level.

At every level all beams of a row go through the model as one block; an ancestor mask lets a beam see the prompt and its
own path, so the cache is appended to and never copied or reordered. The result is that of `generate(num_beams=…)` with
`SidLogitsProcessor`, without the beams' copies of the prompt.

What a code's score is, is told in `llmrec.scores`.

Shapes: B rows, M beams, T prompt tokens, K codes of a level, L levels.

Source: tree attention over shared prefixes as in SpecInfer (arXiv:2305.09781), applied to beams instead of drafts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import DynamicCache, PreTrainedModel

from llmrec.backbone import causal_lm, run_backbone
from llmrec.scores import NormalizeOver, check_normalize_over, level_log_probs
from llmrec.sid import EMPTY
from llmrec.trie import ROOT, LeafFilter, SidTrie
from llmrec.vocab import SidVocabulary


@dataclass(frozen=True)
class Beams:
    """Complete SIDs of each row, best first.

    Attributes:
        codes: (B, M, L) codes; -1 beyond a SID's length and in unfilled beams.
        scores: (B, M) summed log-probabilities; -inf in unfilled beams.
        leaves: (B, M) leaf rank in the trie; -1 in unfilled beams.
    """

    codes: Tensor
    scores: Tensor
    leaves: Tensor


@torch.no_grad()
def tree_beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    trie: SidTrie,
    vocabulary: SidVocabulary,
    num_beams: int,
    normalize_over: NormalizeOver = "vocabulary",
    leaf_filter: LeafFilter | None = None,
) -> Beams:
    """The `num_beams` best SIDs of each prompt.

    Args:
        model: Causal LM, or a PEFT model over one.
        input_ids: (B, T) prompts, padded on either side.
        attention_mask: (B, T), 0 at padding; all ones when left out.
        trie: Legal SIDs.
        vocabulary: Their tokens.
        num_beams: Beam width.
        normalize_over: What a code's probability is normalised over; see `llmrec.scores`.
        leaf_filter: Leaves that each row may reach.

    Returns:
        Beams; fewer than `num_beams` are filled where fewer SIDs are legal.

    Raises:
        ValueError: If `num_beams` is not positive, the filter is of another batch, the vocabulary lacks codes of the
            trie, prompt and SID do not fit the model's context, or the model cannot attend along a tree.
    """
    model = causal_lm(model)
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    vocabulary.check_table(trie)
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; at least 1 is needed.")
    check_normalize_over(normalize_over)
    if leaf_filter is not None and len(leaf_filter.ranks) != len(input_ids):
        raise ValueError(f"The filter is for {len(leaf_filter.ranks)} rows, but there are {len(input_ids)} prompts.")
    _check_model(model, input_ids.shape[1] + trie.num_levels)
    search = _TreeBeamSearch(model, attention_mask, trie, vocabulary, num_beams, normalize_over, leaf_filter)
    hidden = search.prefill(input_ids)  # (B, 1, hidden)
    for level in range(trie.num_levels):
        if level > 0:
            hidden = search.advance(level)  # (B, M, hidden)
        search.select(hidden, level)
    return search.finish()


def _check_model(model: PreTrainedModel, length: int) -> None:
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation is '{attention}', but tree beam search needs a free-form mask: load the model with "
            "'sdpa' or 'eager'."
        )
    if model._is_stateful:
        raise ValueError(
            f"{type(model).__name__} has recurrent layers, through which beams cannot share a prompt; use `generate()` "
            "with SidLogitsProcessor."
        )
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    chunk = getattr(config, "attention_chunk_size", None)
    limits = [limit for limit in (limit, window, chunk) if limit]
    if limits and length > min(limits):
        raise ValueError(
            f"Prompt and SID take {length} tokens but the model attends over {min(limits)}; lower max_history."
        )


class _TreeBeamSearch:
    """State of one search: running beams, finished ones, and the block of cache that each level appended."""

    def __init__(
        self,
        model: PreTrainedModel,
        attention_mask: Tensor,
        trie: SidTrie,
        vocabulary: SidVocabulary,
        num_beams: int,
        normalize_over: NormalizeOver,
        leaf_filter: LeafFilter | None,
    ):
        self.model, self.trie, self.vocabulary = model, trie, vocabulary
        self.num_beams, self.normalize_over, self.filter = num_beams, normalize_over, leaf_filter
        self.mask_BT = attention_mask
        self.prompt_length = attention_mask.sum(dim=1)  # (B,)
        # Without a config no layer drops keys: all beams' tokens may exceed a sliding window that each beam fits into.
        self.cache = DynamicCache()
        shape, device = (len(attention_mask), num_beams), attention_mask.device
        self.finished = self._empty(*shape, device)
        self.scores = torch.zeros(shape[0], 1, device=device)
        self.nodes = torch.full((shape[0], 1), ROOT, device=device)
        self.codes = torch.full((shape[0], 1, trie.num_levels), EMPTY, device=device)
        self.path = torch.empty(shape[0], 1, 0, dtype=torch.int64, device=device)  # beam's place in each cached block
        self.block_widths: list[int] = []

    def _empty(self, batch_size: int, width: int, device: torch.device) -> Beams:
        return Beams(
            torch.full((batch_size, width, self.trie.num_levels), EMPTY, device=device),
            torch.full((batch_size, width), -torch.inf, device=device),
            torch.full((batch_size, width), -1, device=device),
        )

    def prefill(self, input_ids: Tensor) -> Tensor:
        """Run the prompts once; (B, 1, hidden) state of each prompt's last token."""
        positions = (self.mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        output = run_backbone(
            self.model,
            input_ids=input_ids,
            attention_mask=self.mask_BT,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        last = (self.mask_BT * torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)).argmax(dim=1)
        return output.last_hidden_state[torch.arange(len(last), device=last.device), last].unsqueeze(1)

    def advance(self, level: int) -> Tensor:
        """Feed the codes chosen at `level - 1` as one block of M tokens; (B, M, hidden)."""
        chosen = self.codes[:, :, level - 1]
        tokens = chosen.clamp(min=0) + self.vocabulary.starts[level - 1]
        output = run_backbone(
            self.model,
            input_ids=tokens,
            attention_mask=self._ancestor_mask(),
            position_ids=(self.prompt_length + level - 1).unsqueeze(1).expand_as(tokens),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def _ancestor_mask(self) -> Tensor:
        """(B, 1, M, T + cached beams) mask: a beam sees its prompt, its ancestors and itself."""
        prompt = self.mask_BT.bool().unsqueeze(1).expand(-1, self.path.shape[1], -1)
        blocks = [one_hot(self.path[:, :, i], width).bool() for i, width in enumerate(self.block_widths)]
        visible = torch.cat([prompt, *blocks], dim=2).unsqueeze(1)
        if self.model.config._attn_implementation == "sdpa":
            return visible
        hidden = torch.full(
            visible.shape, torch.finfo(self.model.dtype).min, dtype=self.model.dtype, device=visible.device
        )
        return hidden.masked_fill_(visible, 0)

    def select(self, hidden: Tensor, level: int) -> None:
        """Choose the next beams among all continuations; complete beams leave for the finished ones."""
        children = self.trie.children(self.nodes, level)  # (B, M, K)
        legal = children >= 0
        if self.filter is not None:
            legal &= self.filter.permits(*self.trie.leaf_range(children, level + 1))
        log_probs = level_log_probs(self.model, hidden, self.vocabulary, level, legal, self.normalize_over)
        continued = self.scores.unsqueeze(-1) + log_probs
        best = self._finish_complete(continued.flatten(1), level)
        beam = best // children.shape[2]
        self.scores = continued.flatten(1).gather(1, best)
        self.nodes = children.flatten(1).gather(1, best).masked_fill(self.scores.isneginf(), -1)
        self.codes = self.codes.gather(1, beam.unsqueeze(-1).expand(-1, -1, self.codes.shape[2])).clone()
        self.codes[:, :, level] = torch.where(self.nodes >= 0, best % children.shape[2], EMPTY)
        path = self.path.gather(1, beam.unsqueeze(-1).expand(-1, -1, self.path.shape[2]))
        own = torch.arange(best.shape[1], device=best.device).expand(len(best), -1)
        self.path = torch.cat([path, own.unsqueeze(-1)], dim=2)
        self.block_widths.append(best.shape[1])

    def _finish_complete(self, continued: Tensor, level: int) -> Tensor:
        """Indices of the running beams among the continuations (B, M * K), after complete beams have left.

        As in `generate`: ending a complete SID costs nothing and competes with the continuations of the other beams;
        it counts where it ranks among the first `num_beams`.
        """
        width = min(self.num_beams, continued.shape[1])
        complete = self.trie.is_leaf(self.nodes, level) if level > 0 else None
        if complete is None or not complete.any():
            return continued.topk(width, dim=1).indices
        ended = self.scores.masked_fill(~complete, -torch.inf)
        every = torch.cat([continued, ended], dim=1)
        top = every.topk(min(self.num_beams, every.shape[1]), dim=1)
        is_end = top.indices >= continued.shape[1]
        source = (top.indices - continued.shape[1]).clamp(min=0)
        self._keep(source, top.values.masked_fill(~is_end, -torch.inf), level)
        return continued.topk(width, dim=1).indices

    def _keep(self, beam: Tensor, scores: Tensor, depth: int) -> None:
        """Merge ended beams (B, x) into the finished ones, best first."""
        ranks = self.trie.leaf_range(self.nodes.gather(1, beam), depth)[0]
        leaves = torch.where(scores.isneginf(), -1, ranks)
        codes = self.codes.gather(1, beam.unsqueeze(-1).expand(-1, -1, self.codes.shape[2]))
        codes = codes.masked_fill((leaves < 0).unsqueeze(-1), EMPTY)
        merged = torch.cat([self.finished.scores, scores], dim=1)
        best = merged.topk(self.num_beams, dim=1)
        every = torch.cat([self.finished.codes, codes], dim=1)
        self.finished = Beams(
            every.gather(1, best.indices.unsqueeze(-1).expand(-1, -1, every.shape[2])),
            best.values,
            torch.cat([self.finished.leaves, leaves], dim=1).gather(1, best.indices),
        )

    def finish(self) -> Beams:
        """End the beams that completed at the last level."""
        beam = torch.arange(self.scores.shape[1], device=self.scores.device).expand_as(self.scores)
        self._keep(beam, self.scores, self.trie.num_levels)
        return self.finished
