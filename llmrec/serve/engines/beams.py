"""Beam search over `LLM.generate`: the best SIDs of each prompt, as llmrec's own search finds them, out of vLLM.

vLLM's own `beam_search` cannot switch a processor on, and keeps tokens that one has barred. Here every level sends one
request for each beam, which asks for the scores of the next token, and beams are kept as `llmrec.decoding.beam_search`
keeps them. Prefix caching spares most of the prompt. llmrec's own search is faster, since it sends no beam through a
scheduler.

The engine needs a SidTrieProcessor, `logprobs_mode="processed_logits"`, which returns the scores that the processor
writes, and `max_logprobs` of at least the beam width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmrec.serve.engines.folder import ExportedFolder
from llmrec.serve.engines.switch import PREFIX, SWITCH

if TYPE_CHECKING:  # not in every environment that imports this
    from vllm import LLM

SCORES = "processed_logits"


class Beam(NamedTuple):
    """Beginning of an answer, and its summed log-probability."""

    tokens: tuple[int, ...]
    score: float


def search_beams(
    llm: LLM, folder: ExportedFolder, prompts: Sequence[Sequence[int]], num_beams: int
) -> tuple[list[list[tuple[int, ...]]], list[list[float]]]:
    """Find the `num_beams` best SIDs of each prompt.

    Args:
        llm: Engine of vLLM that serves the folder; see the header of this file.
        folder: The folder.
        prompts: B lists of token ids, such as `ExportedFolder.prompt` makes.
        num_beams: Beam width, at least 1.

    Returns:
        B lists of answers (token ids), best first, and B lists of their scores; fewer than `num_beams` if the catalogue
        has no more SIDs.

    Raises:
        ValueError: If the engine was made with other options, or `num_beams` is not positive.
    """
    width = min(num_beams, max(folder.settings.level_sizes))  # no beam has more children
    check_engine(llm, num_beams, width)
    running, finished = [[Beam((), 0.0)] for _ in prompts], [list[Beam]() for _ in prompts]
    while any(running):
        complete = folder.complete({beam.tokens for beams in running for beam in beams})
        open_beams = [[beam for beam in beams if beam.tokens not in complete] for beams in running]
        for place, grown in enumerate(grow(llm, prompts, open_beams, width)):
            ended = [beam for beam in running[place] if beam.tokens in complete]
            kept = best([*grown, *ended], num_beams)  # to end costs nothing, and competes with going on
            finished[place] += [divided(beam, folder.settings.length_penalty) for beam in ended if beam in kept]
            running[place] = best(grown, num_beams)
    found = [best(beams, num_beams) for beams in finished]
    return [[beam.tokens for beam in beams] for beams in found], [[beam.score for beam in beams] for beams in found]


def check_engine(llm: LLM, num_beams: int, width: int) -> None:
    """Refuse an engine that returns other scores than those of the processor, or too few.

    Raises:
        ValueError: If so, or if `num_beams` is not positive.
    """
    config = llm.model_config
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; at least 1 is needed.")
    if not any("SidTrieProcessor" in str(each) for each in config.logits_processors or ()):
        raise ValueError("The engine has no SidTrieProcessor; give its full name as one of `logits_processors`.")
    if config.logprobs_mode != SCORES:
        raise ValueError(f"The engine has logprobs_mode '{config.logprobs_mode}'; make it with '{SCORES}'.")
    if -1 < config.max_logprobs < width:
        raise ValueError(f"The engine has max_logprobs {config.max_logprobs}; {width} is needed for {num_beams} beams.")


def grow(llm: LLM, prompts: Sequence[Sequence[int]], running: Sequence[Sequence[Beam]], width: int) -> list[list[Beam]]:
    """Continue the beams of each prompt, all of one length, by their `width` best legal tokens."""
    from vllm import SamplingParams

    grown = [list[Beam]() for _ in prompts]
    asked = [(place, beam) for place, beams in enumerate(running) for beam in beams]
    if not asked:
        return grown
    requests = [{"prompt_token_ids": [*prompts[place], *beam.tokens]} for place, beam in asked]
    params = SamplingParams(
        temperature=0, max_tokens=1, logprobs=width, flat_logprobs=True, detokenize=False,
        extra_args={SWITCH: True, PREFIX: len(asked[0][1].tokens)},
    )  # fmt: skip
    for (place, beam), output in zip(asked, llm.generate(requests, params, use_tqdm=False), strict=True):
        found = output.outputs[0].logprobs
        scores = dict(zip(found.token_ids, found.logprobs, strict=True))  # the token that was chosen stands there twice
        legal = [(token, score) for token, score in scores.items() if score > -math.inf]
        grown[place] += [Beam((*beam.tokens, token), beam.score + score) for token, score in legal]
    return grown


def best(beams: Collection[Beam], count: int) -> list[Beam]:
    """Take the beams with the largest scores, in their order."""
    return sorted(beams, key=lambda beam: -beam.score)[:count]


def divided(beam: Beam, length_penalty: float) -> Beam:
    """Divide the score of a complete SID by a power of its number of tokens."""
    return Beam(beam.tokens, beam.score / len(beam.tokens) ** length_penalty)
