"""Decoding with `generate()`: a logits processor for its own loops, and tree beam search as its `custom_generate`.

What scores are normalised over is told in `llmrec.scores`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import GenerateBeamDecoderOnlyOutput

from llmrec.beam_search import tree_beam_search
from llmrec.scores import NormalizeOver, check_normalize_over, normalize_codes
from llmrec.sid import EMPTY
from llmrec.trie import ROOT, LeafFilter, SidTrie
from llmrec.vocab import SidVocabulary


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
        ValueError: If the vocabulary lacks codes of the trie; when called on a row that is shorter than the prompt, or
            whose tokens after the prompt are not a prefix of any SID.
    """

    def __init__(
        self,
        trie: SidTrie,
        vocabulary: SidVocabulary,
        prompt_length: int,
        normalize_over: NormalizeOver = "vocabulary",
    ):
        vocabulary.check_table(trie)
        check_normalize_over(normalize_over)
        self.trie, self.vocabulary, self.prompt_length = trie, vocabulary, prompt_length
        self.normalize_over = normalize_over

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Masked scores; (rows, tokens) and (rows, V) -> (rows, V)."""
        if input_ids.shape[1] < self.prompt_length:
            raise ValueError(f"prompt_length is {self.prompt_length} but the rows have {input_ids.shape[1]} tokens.")
        generated = input_ids[:, self.prompt_length :]
        nodes, ended = self._walk(generated)
        masked = torch.full_like(scores, -torch.inf)
        level = generated.shape[1]
        if level < self.trie.num_levels:
            block, legal = self.vocabulary.block(level), self.trie.allowed(nodes, level)
            codes = slice(block.start, block.start + legal.shape[1])  # the table may use fewer than the vocabulary has
            masked[:, codes] = normalize_codes(scores[:, block], legal, self.normalize_over)
        masked[ended, self.vocabulary.eos_token_id] = 0
        return masked

    def _walk(self, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Node that each row has reached, and whether it has completed a SID; beyond that its node is -1."""
        nodes = torch.full((len(generated),), ROOT, device=generated.device)
        ended = torch.zeros_like(nodes, dtype=torch.bool)
        for level in range(min(generated.shape[1], self.trie.num_levels)):
            size = self.trie.level_sizes[level]
            code = generated[:, level] - self.vocabulary.starts[level]
            known = (code >= 0) & (code < size)
            child = self.trie.children(nodes, level).gather(1, code.clamp(0, size - 1).unsqueeze(1)).squeeze(1)
            nodes = child.masked_fill(~known, -1)
            stray = (~ended & (nodes < 0)).nonzero()
            if len(stray):
                row = int(stray[0])
                raise ValueError(
                    f"Row {row} continues its prompt with the tokens {generated[row, : level + 1].tolist()}, which no "
                    f"SID of the trie begins with. Is prompt_length {self.prompt_length} the length of the padded "
                    "prompt, and is this the processor of this model's SID table?"
                )
            ended = ended | self.trie.is_leaf(nodes, level + 1)
        return nodes, ended


def sid_generation_config(
    vocabulary: SidVocabulary, num_beams: int = 1, num_return_sequences: int = 1, do_sample: bool = False
) -> GenerationConfig:
    """GenerationConfig for `generate()` under a SidLogitsProcessor, with nothing left for the model to fill in.

    `generate` completes unset fields from the model's own generation config, where a repetition penalty or top-k cuts
    constrained beams silently; so every field that could act on a code is set to the value at which it does nothing.
    Four have no such value (forced_bos_token_id, which acts on one-token prompts, top_h, watermarking_config,
    stop_strings) and must be unset in the model.
    """
    eos = vocabulary.eos_token_id
    neutral = {
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "guidance_scale": 1.0,
        "renormalize_logits": False,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
        # These two may not be empty; end-of-sequence is theirs to change, since the processor scores it afterwards.
        "sequence_bias": [[[eos], 0.0]],
        "bad_words_ids": [[eos, eos]],
    }
    if do_sample:
        neutral |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
        neutral |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    if num_beams > 1:
        neutral |= {"length_penalty": 0.0, "early_stopping": False}
    return GenerationConfig(
        max_new_tokens=vocabulary.num_levels + 1,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        do_sample=do_sample,
        eos_token_id=eos,
        pad_token_id=eos,
        return_dict_in_generate=True,
        output_scores=True,
        **neutral,
    )


def sid_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    trie: SidTrie,
    vocabulary: SidVocabulary,
    normalize_over: NormalizeOver = "vocabulary",
    leaf_filter: LeafFilter | None = None,
    **model_kwargs: Any,
) -> GenerateBeamDecoderOnlyOutput | Tensor:
    """Tree beam search as `model.generate(..., custom_generate=sid_generate, trie=…, vocabulary=…)`.

    `generate` hands over each prompt max(num_beams, num_return_sequences) times; the copies are dropped. Of the
    generation config it reads num_beams, num_return_sequences and return_dict_in_generate; it never samples. Returns
    what beam search returns: sequences that end in end-of-sequence, best first, num_return_sequences per prompt.

    Raises:
        ValueError: If fewer SIDs are legal than num_return_sequences asks for.
    """
    kept = generation_config.num_return_sequences
    copies = max(generation_config.num_beams, kept)
    prompts, mask = input_ids[::copies], model_kwargs.get("attention_mask")
    mask = None if mask is None else mask[::copies]
    beams = tree_beam_search(
        model, prompts, mask, trie, vocabulary, generation_config.num_beams, normalize_over, leaf_filter
    )
    leaves, scores = beams.leaves[:, :kept], beams.scores[:, :kept]
    if leaves.shape[1] < kept or bool((leaves < 0).any()):
        raise ValueError(f"num_return_sequences is {kept}, but fewer beams or SIDs are there; ask for fewer.")
    tokens = torch.from_numpy(vocabulary.token_ids(beams.codes[:, :kept].flatten(0, 1).cpu().numpy()))
    longest = int((tokens != EMPTY).sum(dim=1).max())
    tokens = tokens[:, :longest].to(prompts.device)
    answers = pad(tokens.masked_fill(tokens == EMPTY, vocabulary.eos_token_id), (0, 1), value=vocabulary.eos_token_id)
    sequences = torch.cat([prompts.repeat_interleave(kept, dim=0), answers], dim=1)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(sequences=sequences, sequences_scores=scores.flatten())
