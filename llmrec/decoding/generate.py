"""Decoding with `generate()`: the config that its own loops need, and tree beam search as its `custom_generate`.

What scores are normalised over is told in `llmrec.model.code_scores`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerateBeamDecoderOnlyOutput

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.model.code_scores import NormalizeOver
from llmrec.sid.table import EMPTY
from llmrec.sid.vocabulary import SidVocabulary


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
