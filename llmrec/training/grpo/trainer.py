"""GRPO on semantic IDs, on TRL's GRPOTrainer.

TRL samples, advances and compares texts. Of that it keeps the batches, the reference, the losses and the log; what
semantic IDs need is put in its place:

    rollout_func                            our roll-outs (rollouts.py), drawn by the model that trains
    _get_per_token_logps_and_entropies      log-probabilities and entropies over the legal children of each prefix, each
                                            prompt computed once for its group (shared_prompt.py)
    _generate_and_score_completions         our advantages, and the weights of the roll-outs
    _compute_loss                           groups laid out as TRL expects them; ECPO
    log                                     evaluations without averages of training

TRL asks for a dataset of text prompts: a prompt here is a number, as text, by which `rollout_func` finds an example's
item rows; tokens come into being there. Rewards are computed there too, and are handed on as columns.

A roll-out's weight (importance, or 0 in a group that is left out) multiplies its part of the loss: policy term, KL and
the averages of the log. TRL has no such weight, but a mask, of 1s, of the tokens that count. Its `grpo` loss divides by
the sum of a completion's mask, in which a weight would cancel; its `dr_grpo` divides by their largest number. So `grpo`
here is TRL's `dr_grpo` under masks divided by the completion's length: the same sum.

Dropout is off: what trains is the policy that was drawn from.

Shapes: U prompts, G roll-outs of each, C tokens of the longest completion.

Source: GRPO arXiv:2402.03300, Dr. GRPO arXiv:2503.20783, DAPO arXiv:2503.14476, GSPO arXiv:2507.18071, ECPO in
OneRec's technical report (arXiv:2506.13695).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import GRPOConfig as TrlGrpoConfig
from trl import GRPOTrainer

from llmrec.configs import GrpoConfig
from llmrec.decoding.ranker import SidRanker
from llmrec.evaluation.learning import NDCG
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY
from llmrec.training.grpo.rewards import WeightedRewards
from llmrec.training.grpo.rollout_batches import Rounds
from llmrec.training.grpo.rollouts import Group, RollOuts
from llmrec.training.trainer import SidTrainer, shared_arguments, use_one_gpu
from llmrec.training.validation import Validation, evaluation_mode
from llmrec.training.weights import without_renaming_warning

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func; tests/test_grpo.py holds its contract
# TRL's loss_type and importance_sampling_level. It warns of `gspo` that lengths would count, which our masks undo.
LOSSES = {
    "grpo": ("dr_grpo", "token"),
    "dr_grpo": ("dr_grpo", "token"),
    "dapo": ("dapo", "token"),
    "gspo": ("dr_grpo", "sequence"),
    "ecpo": ("dr_grpo", "token"),
}
BY_LENGTH = ("grpo", "gspo", "ecpo")  # losses that average over the tokens of a completion
REWARD = "reward_"  # before the names of rewards, among the columns


class SidGRPOTrainer(SidTrainer, GRPOTrainer):
    """GRPOTrainer on groups of semantic IDs; needs `sibling_scores_in_forward` to be open on its model.

    Args:
        config: Of the stage.
        make_ranker: The model that trains as a ranker, on the device that it lies on by then.
        sequences: Item rows of each example: a history, then its target.
        rewards: What a roll-out is worth.
        validation: What ranks the valid rows.
        options: Of GRPOTrainer.
    """

    shown = ("loss", "expected_reward", "idle_share", "entropy", "kl")

    def __init__(
        self,
        config: GrpoConfig,
        make_ranker: Callable[[torch.nn.Module], SidRanker],
        sequences: Sequence[np.ndarray],
        rewards: WeightedRewards,
        validation: Validation | None = None,
        **options: Any,
    ):
        self.make_ranker, self.sequences, self.rewards = make_ranker, sequences, rewards
        self.rounds: Rounds | None = None  # made once the model is on its device
        self._batch: dict[str, Tensor] = {}  # whose loss is being computed
        super().__init__(
            config=config,
            validation=validation,
            rollout_func=roll_out,
            reward_funcs=[column_reader(name, place == 0) for place, name in enumerate(rewards.rewards)],
            **options,
        )

    def draw(self, prompts: Sequence[int]) -> tuple[list[Group], dict[str, float]]:
        """Groups of numbered prompts, by the model as it stands, and what the log says of them."""
        if self.rounds is None:
            rollouts = RollOuts(self.make_ranker(self.model), self.sequences, self.rewards, self.config)
            self.rounds = Rounds(rollouts, self.config)
        with evaluation_mode(self.model), self.accelerator.autocast():
            return self.rounds.draw(prompts, int(self.state.epoch or 0), self.state.global_step)

    def _generate_and_score_completions(self, inputs: list[JsonObject]) -> dict[str, Tensor]:
        """TRL's batch with our advantages and weights, as (U, G, …): TRL shuffles and splits whole groups then."""
        with without_renaming_warning():
            scored = super()._generate_and_score_completions(inputs)
        scored["advantages"] = scored["prompt_ids"].new_tensor(
            [row["advantage"] for row in inputs], dtype=torch.float32
        )
        scored["tool_mask"] = self._mask(inputs, scored["completion_mask"])
        groups = self.num_generations
        return {name: value.unflatten(0, (-1, groups)) if value.dim() else value for name, value in scored.items()}

    def _mask(self, inputs: list[JsonObject], completion_mask: Tensor) -> Tensor:
        """(U * G, C) what each token counts; see the file header."""
        weights = completion_mask.new_tensor([row["weight"] for row in inputs], dtype=torch.float32)
        if self.config.idle != "keep":
            lives = (~completion_mask.new_tensor([row["is_idle"] for row in inputs], dtype=torch.bool)).float()
            weights = weights * lives / self.accelerator.gather(lives).mean().clamp(min=1 / len(lives))
        if self.config.loss in BY_LENGTH:
            weights = weights * self.max_completion_length / completion_mask.sum(dim=1)
        return completion_mask * weights.unsqueeze(1)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        self._batch = {name: value.flatten(0, 1) if value.dim() else value for name, value in inputs.items()}
        return super()._compute_loss(model, self._batch)

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """(U * G, C) log-probabilities of the completions and entropies, over legal children."""
        log_probs, entropies = [], []
        for ids, mask in zip(
            input_ids.split(batch_size or len(input_ids)),
            attention_mask.split(batch_size or len(input_ids)),
            strict=True,
        ):
            prompts, seen = (each[:: self.num_generations, :-logits_to_keep] for each in (ids, mask))
            sids = ids[:, -logits_to_keep:].masked_fill(mask[:, -logits_to_keep:] == 0, EMPTY)
            with self.accelerator.autocast():
                scores = model(
                    input_ids=prompts,
                    attention_mask=seen,
                    completions=sids.unflatten(0, (-1, self.num_generations)),
                )
            log_probs.append(scores.log_probs.flatten(0, 1))
            entropies.append(scores.entropies.flatten(0, 1))
        log_probs = torch.cat(log_probs)
        if self.config.loss == "ecpo" and log_probs.requires_grad and "old_per_token_logps" in self._batch:
            bound = 1 + self.epsilon_high + self.config.early_clip
            old = self._batch["old_per_token_logps"]
            self._batch["old_per_token_logps"] = early_clipped(old, log_probs, bound)  # which TRL reads after this
        return log_probs, torch.cat(entropies), None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """An evaluation as it is: TRL would empty its averages of training into it."""
        Trainer.log(self, logs, start_time) if NDCG in logs else super().log(logs, start_time)


def early_clipped(old: Tensor, new: Tensor, bound: float) -> Tensor:
    """log max(pi_old, sg(pi) / bound): the ratio to it stays below `bound`, and keeps its gradient there.

    PPO's clipping bounds no ratio of a negative advantage: a roll-out that has become likelier since it was drawn is
    pushed down by a gradient as large as the ratio.
    """
    return torch.maximum(old, new.detach() - float(np.log(bound)))


def roll_out(prompts: list[str], trainer: SidGRPOTrainer) -> dict[str, list[Any]]:
    """TRL's `rollout_func`: each prompt, a number, comes `num_generations` times in a row."""
    groups, facts = trainer.draw([int(prompt) for prompt in prompts[:: trainer.num_generations]])
    return {
        "prompt_ids": [group.prompt for group in groups for _ in group.completions],
        "completion_ids": [sid for group in groups for sid in group.completions],
        "logprobs": None,
        "advantage": [value for group in groups for value in group.advantages.tolist()],
        "weight": [value for group in groups for value in group.weights.tolist()],
        "is_idle": [group.is_idle for group in groups for _ in group.completions],
        "facts": [facts] * len(prompts),
        **{
            REWARD + name: [value for group in groups for value in group.rewards[name].tolist()]
            for name in groups[0].rewards
        },
    }


def column_reader(name: str, tells_facts: bool) -> Callable[..., list[float]]:
    """TRL's reward function for a reward that is known; one of them also puts the facts of the roll-outs in the log."""

    def read(log_metric: Callable[[str, float], None], facts: list[dict[str, float]], **columns: Any) -> list[float]:
        for fact, value in facts[0].items() if tells_facts else ():
            log_metric(fact, value)
        return columns[REWARD + name]

    read.__name__ = name
    return read


def trainer_arguments(
    config: GrpoConfig,
    weights: Sequence[float],
    num_levels: int,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> TrlGrpoConfig:
    """The stage's config in TRL's words, in which a batch counts completions; `weights` are those of the rewards."""
    shared = shared_arguments(config, directory, device, dtype)
    loss_type, level = LOSSES[config.loss]
    batch_size = shared.pop("per_device_train_batch_size") * config.num_generations
    with without_renaming_warning():
        return TrlGrpoConfig(
            **shared,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=config.num_generations,
            num_generations=config.num_generations,
            max_completion_length=num_levels,
            temperature=config.temperature,
            beta=config.beta,
            loss_type=loss_type,
            importance_sampling_level=level,
            num_iterations=config.num_iterations,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            reward_weights=weights,
            shuffle_dataset=False,  # see `Rounds.examples`
            disable_dropout=True,
        )


def make_trainer(
    config: GrpoConfig,
    model: PreTrainedModel,
    lora: LoraConfig,
    tokenizer: PreTrainedTokenizerBase,
    num_levels: int,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> SidGRPOTrainer:
    """TRL's trainer; options are those of SidGRPOTrainer."""
    arguments = trainer_arguments(config, options["rewards"].weights, num_levels, directory, device, dtype)
    use_one_gpu(arguments, config)
    numbers = Dataset.from_dict({"prompt": [str(place) for place in range(len(options["sequences"]))]})
    with without_renaming_warning():
        return SidGRPOTrainer(
            config=config,
            model=model,
            peft_config=lora,
            args=arguments,
            train_dataset=numbers,
            processing_class=tokenizer,
            **options,
        )
