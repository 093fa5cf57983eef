"""Decoding under the trie: tree beam search, and a logits processor for everybody else's loop.

Tree beam search prefills each prompt once. At every level all beams of a row go through the model as one block of
tokens; an ancestor mask lets a beam see the prompt and its own path, so the cache is appended to and never copied or
reordered. It returns what `generate(num_beams=…)` with `SidLogitsProcessor` returns, without the beams' copies of the
prompt.

A code's score is its log-probability normalised over
    vocabulary  the whole vocabulary, as Hugging Face beam search scores; for models trained with `sid_loss: full`,
    level       the codes of its level; for models trained with `sid_loss: level`, whose other logits mean nothing,
    children    the legal continuations of its prefix; GRPO's policy.

Shapes: B rows, M beams, T prompt tokens, K codes of a level, L levels.

Source: tree attention over shared prefixes as in SpecInfer (arXiv:2305.09781), applied to beams instead of drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear, one_hot
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import GenerateBeamDecoderOnlyOutput

from llmrec.backbone import causal_lm, finish_logits, logits, output_rows, run_backbone
from llmrec.sid import EMPTY
from llmrec.trie import ROOT, LeafFilter, SidTrie
from llmrec.vocab import SidVocabulary

NormalizeOver = Literal["vocabulary", "level", "children"]


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
        normalize_over: What a code's probability is normalised over; see the file header.
        leaf_filter: Leaves that each row may reach.

    Returns:
        Beams; fewer than `num_beams` are filled where fewer SIDs are legal.

    Raises:
        ValueError: If `num_beams` is not positive, or prompt and SID do not fit the model's context.
    """
    model = causal_lm(model)
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    _check_search(model, input_ids.shape[1] + trie.num_levels, num_beams, normalize_over)
    search = _TreeBeamSearch(model, attention_mask, trie, vocabulary, num_beams, normalize_over, leaf_filter)
    hidden = search.prefill(input_ids)  # (B, 1, hidden)
    for level in range(trie.num_levels):
        if level > 0:
            hidden = search.advance(level)  # (B, M, hidden)
        search.select(hidden, level)
    return search.finish()


def _check_search(model: PreTrainedModel, length: int, num_beams: int, normalize_over: str) -> None:
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; at least 1 is needed.")
    if normalize_over not in get_args(NormalizeOver):
        raise ValueError(f"normalize_over is '{normalize_over}'; choose from {', '.join(get_args(NormalizeOver))}.")
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attn_implementation is '{model.config._attn_implementation}'; tree beam search needs a free-form mask: load "
            "the model with 'sdpa' or 'eager'."
        )
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    limits = [limit for limit in (limit, window) if limit]
    if limits and length > min(limits):
        raise ValueError(
            f"Prompt and SID take {length} tokens but the model attends over {min(limits)}; lower max_history."
        )


class _TreeBeamSearch:
    """State of one search: running beams, finished ones, and the block of cache that each level appended."""

    def __init__(self, model, attention_mask, trie, vocabulary, num_beams, normalize_over, leaf_filter):
        self.model, self.trie, self.vocabulary = model, trie, vocabulary
        self.num_beams, self.normalize_over, self.filter = num_beams, normalize_over, leaf_filter
        self.mask_BT = attention_mask
        self.prompt_length = attention_mask.sum(dim=1)  # (B,)
        self.cache = DynamicCache(config=model.config)
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
        continued = self.scores.unsqueeze(-1) + log_probs.masked_fill(~legal, -torch.inf)
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
        top = every.topk(min(2 * self.num_beams, every.shape[1]), dim=1)
        is_end = (top.indices >= continued.shape[1]) & ~top.values.isneginf()
        counts = is_end & (torch.arange(top.indices.shape[1], device=is_end.device) < self.num_beams)
        source = (top.indices - continued.shape[1]).clamp(min=0)
        self._keep(source, top.values.masked_fill(~counts, -torch.inf), level)
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


def level_log_probs(
    model: PreTrainedModel,
    hidden: Tensor,
    vocabulary: SidVocabulary,
    level: int,
    legal: Tensor,
    normalize_over: NormalizeOver,
) -> Tensor:
    """Log-probability of every code of a level.

    Args:
        model: Causal LM.
        hidden: (…, hidden) states that predict the code.
        vocabulary: Tokens of the codes.
        level: Level of the code.
        legal: (…, K) bool; read by `normalize_over="children"`.
        normalize_over: See the file header.

    Returns:
        (…, K) float32; illegal codes are not masked, except under `children`.
    """
    block = vocabulary.block(level)
    if normalize_over == "vocabulary":
        every = logits(model, hidden)
        return every[..., block] - every.logsumexp(dim=-1, keepdim=True)
    weight, bias = output_rows(model, block)
    scores = finish_logits(model, linear(hidden.to(weight.dtype), weight, bias))
    if normalize_over == "children":
        scores = scores.masked_fill(~legal, -torch.inf)
        return (scores - scores.logsumexp(dim=-1, keepdim=True)).masked_fill(~legal, -torch.inf)
    return scores.log_softmax(dim=-1)


class SidLogitsProcessor(LogitsProcessor):
    """Restrict any `generate()` loop (greedy, sampling, beams) to the SIDs of a trie.

    It keeps no state: each call walks the tokens after the prompt, so reordered beams and reused instances are safe. A
    complete SID, or a row that has ended, may only be followed by end-of-sequence, at score 0.

    Args:
        trie: Legal SIDs.
        vocabulary: Their tokens.
        prompt_length: Tokens of the (padded) prompt, `input_ids.shape[1]`.
        normalize_over: What scores are normalised over. `vocabulary` leaves them as `generate` made them.

    Raises:
        ValueError: When called on a row whose tokens after the prompt are not a prefix of any SID.
    """

    def __init__(
        self,
        trie: SidTrie,
        vocabulary: SidVocabulary,
        prompt_length: int,
        normalize_over: NormalizeOver = "vocabulary",
    ):
        self.trie, self.vocabulary, self.prompt_length = trie, vocabulary, prompt_length
        self.normalize_over = normalize_over

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Masked scores; (rows, tokens) and (rows, V) -> (rows, V)."""
        generated = input_ids[:, self.prompt_length :]
        nodes, ended = self._walk(generated)
        masked = torch.full_like(scores, -torch.inf)
        level = generated.shape[1]
        if level < self.trie.num_levels:
            block = self.vocabulary.block(level)
            legal = self.trie.allowed(nodes.masked_fill(ended, -1), level)
            masked[:, block] = self._normalize(scores, block, legal).masked_fill(~legal, -torch.inf)
        masked[ended, self.vocabulary.eos_token_id] = 0
        return masked

    def _walk(self, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Node that each row has reached, and whether its SID is complete."""
        nodes = torch.full((len(generated),), ROOT, device=generated.device)
        ended = torch.zeros_like(nodes, dtype=torch.bool)
        for level in range(min(generated.shape[1], self.trie.num_levels)):
            code = generated[:, level] - self.vocabulary.starts[level]
            size = self.trie.level_sizes[level]
            known = (code >= 0) & (code < size)
            child = self.trie.children(nodes, level).gather(1, code.clamp(0, size - 1).unsqueeze(1)).squeeze(1)
            child = child.masked_fill(~known, -1)
            if bool((~ended & (child < 0)).any()):
                row = int((~ended & (child < 0)).nonzero()[0])
                raise ValueError(
                    f"Row {row} continues its prompt with the tokens {generated[row, : level + 1].tolist()}, which no SID "
                    f"of the trie begins with. Is prompt_length {self.prompt_length} the length of the padded prompt, "
                    "and is this the processor of this model's SID table?"
                )
            nodes = torch.where(ended, nodes, child)
            ended = ended | self.trie.is_leaf(nodes.masked_fill(ended, -1), level + 1)
        return nodes, ended

    def _normalize(self, scores: Tensor, block: slice, legal: Tensor) -> Tensor:
        within = scores[:, block]
        if self.normalize_over == "vocabulary":
            return within
        if self.normalize_over == "children":
            within = within.masked_fill(~legal, -torch.inf)
        return within - within.logsumexp(dim=-1, keepdim=True)


def sid_generation_config(
    vocabulary: SidVocabulary, num_beams: int = 1, num_return_sequences: int = 1, do_sample: bool = False
) -> GenerationConfig:
    """GenerationConfig for `generate()` under a SidLogitsProcessor, with nothing left for the model to fill in.

    `generate` completes unset fields from the model's own generation config, where a repetition penalty or top-k cuts
    constrained beams silently; so all that could act on scores is set here.
    """
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0} if do_sample else {}
    beams = {"length_penalty": 0.0, "early_stopping": False} if num_beams > 1 else {}
    return GenerationConfig(
        max_new_tokens=vocabulary.num_levels + 1,
        min_length=0,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        do_sample=do_sample,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        renormalize_logits=False,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.eos_token_id,
        return_dict_in_generate=True,
        output_scores=True,
        **sampling,
        **beams,
    )


def sid_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    trie: SidTrie,
    vocabulary: SidVocabulary,
    normalize_over: NormalizeOver = "vocabulary",
    **model_kwargs: Any,
) -> GenerateBeamDecoderOnlyOutput | Tensor:
    """Tree beam search as `model.generate(..., custom_generate=sid_generate, trie=…, vocabulary=…)`.

    `generate` hands over each prompt max(num_beams, num_return_sequences) times; the copies are dropped. Returns what
    beam search returns: sequences that end in end-of-sequence, best first, num_return_sequences per prompt.

    Raises:
        ValueError: If fewer SIDs exist than num_return_sequences asks for.
    """
    copies = max(generation_config.num_beams, generation_config.num_return_sequences)
    prompts, mask = input_ids[::copies], model_kwargs.get("attention_mask")
    mask = None if mask is None else mask[::copies]
    beams = tree_beam_search(model, prompts, mask, trie, vocabulary, generation_config.num_beams, normalize_over)
    kept = generation_config.num_return_sequences
    if trie.num_leaves < kept:
        raise ValueError(f"num_return_sequences is {kept} but the trie holds {trie.num_leaves} SIDs; ask for fewer.")
    starts = torch.tensor(vocabulary.starts, device=prompts.device)
    codes = beams.codes[:, :kept].flatten(0, 1)
    tokens = torch.where(codes == EMPTY, vocabulary.eos_token_id, codes + starts)
    end = torch.full((len(tokens), 1), vocabulary.eos_token_id, device=tokens.device)
    sequences = torch.cat([prompts.repeat_interleave(kept, dim=0), tokens, end], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(sequences=sequences, sequences_scores=beams.scores[:, :kept].flatten())
