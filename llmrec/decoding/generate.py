"""Decoding by `generate()`: the config that its own loops need, and tree beam search as its `custom_generate`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerateBeamDecoderOnlyOutput

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.trie.filter import LeafFilter
from llmrec.decoding.trie.trie import SidTrie
from llmrec.sid.normalization import NormalizeOver
from llmrec.sid.table import EMPTY
from llmrec.sid.vocabulary import SidVocabulary


def sid_generation_config(
    vocabulary: SidVocabulary, num_beams: int = 1, num_return_sequences: int = 1, do_sample: bool = False
) -> GenerationConfig:
    """Build a GenerationConfig for `generate()` under a SidLogitsProcessor, with no field left for the model to fill.

    `generate` takes unset fields from the model's own generation config, where a repetition penalty or top-k cuts
    constrained beams silently. So every field that could act on a code is set to the value at which it does nothing.
    Four fields have no such value (forced_bos_token_id, which acts on one-token prompts, top_h, watermarking_config,
    stop_strings) and must be unset in the model.

    Args:
        vocabulary: Tokens of the codes; an answer has at most one token per level, and end-of-sequence.
        num_beams: Beam width, at least 1.
        num_return_sequences: Number of answers per prompt, at most `num_beams` unless sampling.
        do_sample: Sample instead of taking the best.

    Returns:
        The config, with `return_dict_in_generate` and `output_scores` set.

    Examples:
        >>> from llmrec import SidVocabulary, sid_generation_config
        >>> vocabulary = SidVocabulary(level_sizes=(4, 4), starts=(100, 104), block_sizes=(4, 4), eos_token_id=2)
        >>> config = sid_generation_config(vocabulary, num_beams=10, num_return_sequences=5)
        >>> config.max_new_tokens, config.num_beams, config.repetition_penalty
        (3, 10, 1.0)
    """
    eos = vocabulary.eos_token_id
    neutral: dict[str, object] = {
        "repetition_penalty": 1.0,
        "encoder_repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "guidance_scale": 1.0,
        "renormalize_logits": False,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
        # These two may not be empty; they may act on end-of-sequence, since the processor scores it afterwards.
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
    **model_kwargs: object,
) -> GenerateBeamDecoderOnlyOutput | Tensor:
    """Run tree beam search as `model.generate(..., custom_generate=sid_generate, trie=…, vocabulary=…)`.

    `generate` hands over each prompt max(num_beams, num_return_sequences) times; the copies are dropped. Of the
    generation config this reads num_beams, num_return_sequences and return_dict_in_generate; it never samples.

    Args:
        model: Causal LM, handed over by `generate`.
        input_ids: (B * copies, T) int64 prompts, handed over by `generate`.
        generation_config: Handed over by `generate`; see `sid_generation_config`.
        trie: Legal SIDs, on the model's device.
        vocabulary: Tokens of their codes.
        normalize_over: Tokens that a code's probability is normalised over; see `llmrec.sid.normalization`.
        leaf_filter: Leaves that each of the B prompts may reach; all when left out.
        model_kwargs: Further arguments that `generate` hands over. Only `attention_mask`, (B * copies, T), is read.

    Returns:
        Output of beam search, `sequences` (B * num_return_sequences, T + longest SID + 1) and `sequences_scores`
        (B * num_return_sequences,), best first; or the sequences alone, unless return_dict_in_generate is set.
        Sequences end in end-of-sequence.

    Raises:
        ValueError: If fewer SIDs are legal than num_return_sequences asks for, and as `tree_beam_search` does.

    Examples:
        `model`, `tokenizer`, `table` and `sid_config` belong to a checkpoint; see `SidConfig.load`.

        >>> from llmrec import SidTrie, sid_generate, sid_generation_config
        >>> ids, mask = sid_config.encode([[0, 1]], table, tokenizer)
        >>> config = sid_generation_config(sid_config.vocabulary, num_beams=4, num_return_sequences=2)
        >>> search = {"custom_generate": sid_generate, "trie": SidTrie(table), "vocabulary": sid_config.vocabulary}
        >>> output = model.generate(ids, attention_mask=mask, generation_config=config, **search)
        >>> output.sequences[:, ids.shape[1] :].shape  # two answers of a SID and end-of-sequence
        torch.Size([2, 4])
    """
    num_beams, kept = generation_config.num_beams, generation_config.num_return_sequences
    copies = max(num_beams, kept)
    prompts, mask = input_ids[::copies], model_kwargs.get("attention_mask")
    mask = mask[::copies] if isinstance(mask, Tensor) else None
    beams = tree_beam_search(model, prompts, mask, trie, vocabulary, num_beams, normalize_over, leaf_filter)
    leaves, scores = beams.leaves[:, :kept], beams.scores[:, :kept]
    if leaves.shape[1] < kept or bool((leaves < 0).any()):
        raise ValueError(f"num_return_sequences is {kept}, but there are fewer beams or SIDs; ask for fewer.")
    sequences = _sequences(prompts, beams.codes[:, :kept], vocabulary)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,  # type: ignore[arg-type]  # transformers annotates the legacy alias torch.LongTensor
        sequences_scores=scores.flatten(),
    )


def _sequences(prompts: Tensor, codes: Tensor, vocabulary: SidVocabulary) -> Tensor:
    """(B * n, T + longest SID + 1) prompts with their answers, of (B, T) prompts and (B, n, L) codes."""
    tokens = torch.from_numpy(vocabulary.token_ids(codes.flatten(0, 1).cpu().numpy()))
    longest = int((tokens != EMPTY).sum(dim=1).max())
    tokens = tokens[:, :longest].to(prompts.device)
    answers = pad(tokens.masked_fill(tokens == EMPTY, vocabulary.eos_token_id), (0, 1), value=vocabulary.eos_token_id)
    return torch.cat([prompts.repeat_interleave(codes.shape[1], dim=0), answers], dim=1)
