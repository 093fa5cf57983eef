"""GroundedRanker: the LLM writes the next title freely, and the items whose titles mean nearly the same are ranked.

The vector of a title is the mean of the last hidden states of its tokens, read alone. Items are ranked by the distance
of their titles from the one that was written, with popularity beside it (popularity.py). So every item has a place, and
a title that the LLM writes wrong still finds its neighbours. The vectors of all titles are made once.

Source: BIGRec (arXiv:2308.08434), whose vector is the state of the last token of a title, by the LLM without its LoRA;
the mean over tokens is that of M6-Rec (arXiv:2205.08084), of which nothing else is here. Departure: one model, the
fine-tuned one, writes and reads.

Shapes: B histories, T tokens, N items, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from llmrec.data.examples import Examples
from llmrec.decoding.generate import sid_generation_config
from llmrec.decoding.grounding.popularity import choose_power, inject
from llmrec.decoding.ranker import PADDING, Requests, SidRanker
from llmrec.decoding.tree_forward import PromptReader
from llmrec.decoding.trie.allow_list import resolve_allow_lists
from llmrec.evaluation.ranking import Ranking
from llmrec.model.backbone import causal_lm, run_backbone
from llmrec.model.checkpoint import SidConfig
from llmrec.runtime.device import from_host
from llmrec.sid.table import EMPTY, SidTable

BEAMS = 4  # of BIGRec, which looks up the best one
TITLES_AT_ONCE = 256
MOST_EXAMPLES, SEED = 1000, 0  # valid examples that choose the power, and their draw


class GroundedRanker(SidRanker):
    """Rankings of the whole catalogue by the distance of titles from one that the LLM writes.

    Args:
        model: Causal LM, on the device that it runs on.
        table: Titles of the catalogue, in words of the LLM.
        sid_config: Vocabulary and history length that belong to the weights.
        prefix_ids: Tokens before every history.
        popularity: (N,) numbers of training interactions; None if they are not known.
        power: How much popularity counts.

    Raises:
        ValueError: If the items are not written in words.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        table: SidTable,
        sid_config: SidConfig,
        prefix_ids: Sequence[int],
        popularity: np.ndarray | None = None,
        power: float = 0.0,
    ):
        sid_config.vocabulary.check_rank("ground")
        super().__init__(model, table, sid_config, prefix_ids)
        self.power = power
        self._reader = PromptReader(model, self.prefix_ids, capture=False)  # a search is not made
        counts = None if popularity is None else from_host(np.asarray(popularity, np.float32), model.device)
        self.popularity_N = counts
        first = self.encoder.tokens_NL[0]
        self.end = int(first[first != EMPTY][-1])  # every title ends with it

    @cached_property
    def vectors_ND(self) -> Tensor:
        """(N, D) float32 vectors of all titles."""
        parts = np.array_split(self.encoder.tokens_NL, -(-len(self.encoder.tokens_NL) // TITLES_AT_ONCE))
        return torch.cat([self.embed(from_host(part, self.model.device)) for part in parts])

    @torch.no_grad()
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Read titles alone.

        Args:
            tokens_BT: (B, T) int64 tokens; -1, or the end of a title and all behind it, is not read.

        Returns:
            (B, D) float32 means of the last hidden states; that of the end for a title without a token.
        """
        is_end = (tokens_BT == self.end) | (tokens_BT == EMPTY)
        is_token = ~is_end.cummax(dim=1).values if tokens_BT.shape[1] else is_end
        is_token[:, 0] = True
        tokens = tokens_BT.masked_fill(~is_token, PADDING)
        states = run_backbone(causal_lm(self.model), input_ids=tokens, attention_mask=is_token.long(), use_cache=False)
        weights = is_token.unsqueeze(-1).float()
        return (states.last_hidden_state.float() * weights).sum(dim=1) / weights.sum(dim=1)

    @torch.no_grad()
    def write(self, histories: Sequence[np.ndarray]) -> Tensor:
        """Let the LLM write the next title of each history, without a constraint.

        Args:
            histories: Item rows of each user, oldest first.

        Returns:
            (B, T) int64 tokens, filled up with the end of a title.
        """
        prefix = self.prefix_ids.tolist()
        ids, mask = (
            from_host(array, self.model.device)
            for array in self.encoder.pad_prompts(prefix, self.shown(histories), PADDING)
        )
        order = mask.argsort(dim=1, stable=True)  # padding to the left
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        config = sid_generation_config(self.sid_config.vocabulary, BEAMS)
        config.eos_token_id = config.pad_token_id = self.end
        config.max_new_tokens, config.return_dict_in_generate = self.trie.num_levels, False
        config.length_penalty = self.sid_config.length_penalty
        generate: Callable[..., Tensor] = causal_lm(self.model).generate  # type: ignore[assignment]  # a tensor alone
        written = generate(input_ids=ids, attention_mask=mask, generation_config=config)
        answers = written[:, ids.shape[1] :]
        return pad(answers, (0, max(0, 1 - answers.shape[1])), value=self.end)

    def distances(self, histories: Sequence[np.ndarray]) -> Tensor:
        """(B, N) float32 distances of all titles from the one that is written for each history."""
        return torch.cdist(self.embed(self.write(histories)), self.vectors_ND)

    def choose_power(self, examples: Examples, batch_size: int = 64) -> float:
        """Choose how much popularity counts by valid examples, and keep it.

        Args:
            examples: Valid examples, of which a sample of MOST_EXAMPLES takes part.
            batch_size: Histories written for together.

        Returns:
            The power; 0 if popularity is not known.
        """
        drawn = [i for i in examples.sample(MOST_EXAMPLES, SEED) if len(examples.history(i))]
        if self.popularity_N is not None and drawn:
            parts = [drawn[start : start + batch_size] for start in range(0, len(drawn), batch_size)]
            distances_BN = torch.cat([self.distances([examples.history(i) for i in part]) for part in parts])
            targets_B = from_host(examples.targets[drawn], distances_BN.device)
            self.power = choose_power(distances_BN, self.popularity_N, targets_B)
        return self.power

    def _start(self, decoder: object, requests: Requests, num_beams: int) -> Callable[[], Ranking]:
        allow = None if requests.allow is None else resolve_allow_lists(self.trie, requests.allow)
        scores_BN = -inject(self.distances(requests.histories), self.popularity_N, self.power)
        invalid = torch.zeros(len(scores_BN), dtype=torch.int64)
        return self._rank_items(scores_BN, invalid, requests.exclude, allow, num_beams)
