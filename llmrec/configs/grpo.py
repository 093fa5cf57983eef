"""Options of `llmrec grpo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import option, suggestion
from llmrec.configs.preference import PreferenceConfig

# Keys of `llmrec.training.grpo.rewards.REWARDS`, without torch, whose import costs seconds.
REWARD_NAMES = ("rule", "rank", "prefix", "collaborative", "novelty")


@dataclass(kw_only=True)
class GrpoConfig(PreferenceConfig):
    """Reinforce what a fine-tuned checkpoint recommends by rewards of its own roll-outs."""

    stage = "grpo"

    normalize_over: Literal["children"] = option(
        "What the policy's probabilities run over: the codes that lead to items, so that those of all items sum to 1.",
        "children",
    )
    rewards: list[str] = option(
        f"What a roll-out is worth: {', '.join(REWARD_NAMES)}, or module:function or path/to/file.py:function of your "
        "own, which is run.",
        ["rule", "rank"],
    )
    reward_weights: list[float] | None = option("Of each of `rewards`; 1 when left out.", None)
    rollouts: Literal["sampled", "distinct", "beams"] = option(
        "Independent draws, draws without replacement with importance weights, or the best SIDs (biased).", "distinct"
    )
    # MiniOneRec (2510.24431), its script: 16 roll-outs, temperature 1, KL weight 1e-3.
    num_generations: int = option("Roll-outs of each prompt.", 16, least=2)
    temperature: float = option("Divides the logits of the policy.", 1.0, above=0)
    beta: float = option("Weight of the KL divergence from the checkpoint.", 1e-3, least=0)
    inject_target: bool = option("Put the target into groups that lack it.", False)
    idle: Literal["keep", "filter", "refill"] = option(
        "Groups of equal rewards: keep, leave out of the loss, or replace by other prompts.", "keep"
    )
    refill_rounds: int = option("Times that idle groups are replaced before they are left out.", 3, least=1)
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "ecpo"] = option("Objective; docs/preference.md.", "grpo")
    num_iterations: int = option("Optimiser steps on the same roll-outs.", 1, least=1)
    epsilon: float = option("Clipping of the probability ratio, below 1 and above.", 0.2, above=0, most=1)
    epsilon_high: float | None = option("Clipping above 1, where it differs, as .28 in DAPO.", None, above=0)
    # OneRec's technical report (2506.13695).
    early_clip: float = option("ECPO: how far beyond the clipping a ratio may go.", 0.1, least=0)

    def problems(self) -> list[str]:
        problems = self._reward_problems() + super().problems()
        if self.rollouts == "beams" and self.temperature != 1:
            problems.append(f"temperature is {self.temperature}, but beams are not drawn; leave it at 1")
        if self.rollouts == "distinct" and self.loss == "gspo":
            problems.append("loss 'gspo' takes no importance weights; use rollouts 'sampled', or another loss")
        if self.epsilon_high is not None and self.epsilon_high < self.epsilon:
            problems.append(f"epsilon_high is {self.epsilon_high}, below epsilon {self.epsilon}")
        every = "eval_steps" if self.eval_steps else "save_steps"
        if getattr(self, every) % self.num_iterations:
            problems.append(
                f"{every} is {getattr(self, every)}; it must be a multiple of num_iterations {self.num_iterations}, so "
                "that a resumed run begins with roll-outs of its own"
            )
        return problems

    def _reward_problems(self) -> list[str]:
        unknown = [name for name in self.rewards if name not in REWARD_NAMES and ":" not in name]
        problems = [
            f"unknown reward '{name}'; {suggestion(name, REWARD_NAMES)} (your own is named module:function or "
            "path/to/file.py:function)"
            for name in unknown
        ]
        if not self.rewards:
            problems.append(f"rewards is empty; name at least one of {', '.join(REWARD_NAMES)}")
        if len(set(self.rewards)) < len(self.rewards):
            problems.append(f"rewards repeats a name: {self.rewards}")
        weights = self.reward_weights
        if weights is not None and len(weights) != len(self.rewards):
            problems.append(f"reward_weights has {len(weights)} numbers for {len(self.rewards)} rewards")
        if not all(weights or []):
            problems.append(f"reward_weights is {weights}; a reward of weight 0 has no part: leave it out")
        return problems
