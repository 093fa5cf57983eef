"""Options of `llmrec grpo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.fine_tune import FineTuneConfig
from llmrec.configs.options import option
from llmrec.configs.preference import PreferenceOptions

ON_POLICY = "removed: every group is used for one optimiser step, so no probability ratio is clipped"


@dataclass(kw_only=True)
class GrpoConfig(PreferenceOptions, FineTuneConfig):
    """Train a fine-tuned checkpoint by reinforcement learning, with rewards for the items that it recommends."""

    stage = "grpo"
    renamed: ClassVar[dict[str, str]] = {
        "temperature": "removed: the policy that trains is the one that is decoded",
        "idle": "removed: groups of equal rewards are kept; use inject_target or the reward prefix to have fewer",
        "refill_rounds": "removed: groups of equal rewards are kept",
        "normalize_over": "removed: a code's probability is always normalised over the codes that lead to items",
        **dict.fromkeys(("num_iterations", "epsilon", "epsilon_high", "early_clip"), ON_POLICY),
    }
    renamed_values: ClassVar[dict[str, dict[str, str]]] = {
        "loss": dict.fromkeys(("dapo", "gspo", "ecpo"), f"{ON_POLICY}; use grpo or dr_grpo"),
    }

    rewards: list[str] = option(
        "Rewards of a roll-out, which are added up. docs/preference.md lists the built-in ones. Name your own as "
        "module:function or path/to/file.py:function; llmrec runs that code.",
        ["rule", "rank"],
    )
    reward_weights: list[float] | None = option("Weight of each of `rewards`. By default each weighs 1.", None)
    rollouts: Literal["sampled", "distinct", "beams"] = option(
        "Roll-outs are independent draws (sampled), draws without replacement with importance weights (distinct), or "
        "the best SIDs (beams, biased).",
        "distinct",
    )
    # MiniOneRec (2510.24431), its script: 16 roll-outs, KL weight 1e-3.
    num_generations: int = option("Roll-outs of each prompt.", 16, least=2)
    beta: float = option("Weight of the KL divergence from the checkpoint.", 1e-3, least=0)
    inject_target: bool = option("Put the target into groups of roll-outs that do not have it.", False)
    loss: Literal["grpo", "dr_grpo"] = option(
        "grpo divides by the deviation of the group and by the length of the SID; dr_grpo divides by neither.", "grpo"
    )

    def problems(self) -> list[str]:
        """List the options that contradict each other."""
        problems = super().problems()
        if not self.rewards:
            problems.append("rewards is empty; name at least one, such as rule")
        if len(set(self.rewards)) < len(self.rewards):
            problems.append(f"rewards repeats a name: {self.rewards}")
        weights = self.reward_weights
        if weights is not None and len(weights) != len(self.rewards):
            problems.append(f"reward_weights has {len(weights)} numbers for {len(self.rewards)} rewards")
        if not all(weights or []):
            problems.append(f"reward_weights is {weights}; a reward of weight 0 has no effect: leave it out")
        return problems
