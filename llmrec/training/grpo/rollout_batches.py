"""Rounds: which prompts are rolled out for an optimiser step, and what takes the place of groups without signal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.configs import GrpoConfig
from llmrec.runtime import processes
from llmrec.training.grpo.rollouts import Group, RollOuts

PROMPTS_AT_ONCE = 256  # rolled out together


class Rounds:
    """Draws the groups of one step after another.

    Every draw depends on the seed, the step and the rank of the process alone, so that a resumed run goes on with the
    roll-outs that it would have had.

    Args:
        rollouts: What draws groups.
        config: Of the stage.
    """

    def __init__(self, rollouts: RollOuts, config: GrpoConfig):
        self.rollouts, self.config = rollouts, config

    def draw(self, prompts: Sequence[int], epoch: int, step: int) -> tuple[list[Group], dict[str, float]]:
        """Groups of the prompts at some places of an epoch's order, and what the log says of them.

        Args:
            prompts: Places in the order of `examples`.
            epoch: Whose order.
            step: Optimiser steps taken.
        """
        wanted, state = self.examples(prompts, epoch), [self.config.seed, step, processes.rank()]
        seed = int(np.random.SeedSequence(state).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator(self.rollouts.trie.device).manual_seed(seed)
        groups = self._draw(wanted, generator)
        facts = {
            "idle_share": np.mean([group.is_idle for group in groups]),
            "hit_share": np.mean([group.is_hit for group in groups]),
            "distinct_share": np.mean([group.num_distinct / len(group.completions) for group in groups]),
            "expected_reward": np.mean([group.expected_reward for group in groups]),
        }
        if self.config.idle == "refill":
            facts["refill_draws"] = self._refill(groups, wanted, generator, np.random.default_rng(state))
        return groups, {name: float(value) for name, value in facts.items()}

    def examples(self, prompts: Sequence[int], epoch: int) -> list[int]:
        """Positions of the examples that stand at some places of an epoch's order.

        It is drawn here: TRL's sampler goes on from epoch to epoch, and begins with the first one's again when a run
        is resumed.
        """
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.rollouts.sequences))
        return order[list(prompts)].tolist()

    def _draw(self, places: Sequence[int], generator: torch.Generator) -> list[Group]:
        # Not of micro_batch_size: how many are drawn together decides what is drawn.
        parts = (places[first : first + PROMPTS_AT_ONCE] for first in range(0, len(places), PROMPTS_AT_ONCE))
        return [group for part in parts for group in self.rollouts.draw(part, generator)]

    def _refill(
        self, groups: list[Group], wanted: list[int], generator: torch.Generator, rng: np.random.Generator
    ) -> int:
        """Put groups of other examples in the place of idle ones; how many were drawn for it."""
        others = rng.permutation(np.setdiff1d(np.arange(len(self.rollouts.sequences)), wanted)).tolist()
        drawn = 0
        for _ in range(self.config.refill_rounds):
            empty = [place for place, group in enumerate(groups) if group.is_idle]
            spare, others = others[: len(empty)], others[len(empty) :]
            if not spare:
                break
            drawn += len(spare)
            found = [group for group in self._draw(spare, generator) if not group.is_idle]
            for place, group in zip(empty, found, strict=False):
                groups[place] = group
        return drawn
