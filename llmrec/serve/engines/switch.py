"""The switch in `extra_args` of a vLLM request that turns the mask on: `{"sid": true}`, over HTTP `{"sid": 1}`.

Over HTTP it travels in `vllm_xargs`, whose types have no boolean: JSON's true arrives as 1.

A request may continue an answer that its prompt has begun: `sid_prefix` is the number of its last tokens that belong to
the answer. `llmrec.serve.engines.beams` asks like that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrec.sid.bounds import MOST_LEVELS

if TYPE_CHECKING:  # the package is not there in every environment that imports this
    from vllm import SamplingParams

SWITCH, PREFIX = "sid", "sid_prefix"
OTHER_MASKS = ("allowed_token_ids", "bad_words", "structured_outputs")  # beside the trie's they may leave no token


def check_switch(params: SamplingParams) -> None:
    """Refuse a request whose switch has another value, or that has another constraint beside the trie.

    Raises:
        ValueError: If so; vLLM answers with the message, over HTTP with status 400.
    """
    arguments = params.extra_args or {}
    switch, prefix = arguments.get(SWITCH, False), arguments.get(PREFIX, 0)
    if type(switch) not in (bool, int) or switch not in (0, 1):
        raise ValueError(f"{SWITCH} is {switch!r}; true or false is needed, over HTTP 1 or 0.")
    if type(prefix) is not int or not 0 <= prefix <= MOST_LEVELS:
        raise ValueError(f"{PREFIX} is {prefix!r}; it is the number of tokens, from 0 to {MOST_LEVELS}.")
    if prefix and not switch:
        raise ValueError(f"{PREFIX} is {prefix}, but {SWITCH} is off; give {SWITCH} as well.")
    others = [name for name in OTHER_MASKS if getattr(params, name, None)]
    if switch and others:
        raise ValueError(f"{SWITCH} and {others[0]} both constrain the answer, which may leave no token; drop one.")


def prefix_length(params: SamplingParams) -> int | None:
    """Number of last tokens of the prompt that belong to the answer; None if the mask is off."""
    arguments = params.extra_args or {}
    return int(arguments.get(PREFIX, 0)) if arguments.get(SWITCH) else None
