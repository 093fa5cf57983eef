"""GRPO on semantic IDs: a small trainer on `transformers.Trainer`.

The parts of an optimiser step:

    draw prompts      `deal` and `epoch_order` decide which ones
    roll out groups   `SidGRPOTrainer.roll_out`, by the model as it stands (rollouts.py)
    reward them       rewards.py, user_rewards.py
    compare them      advantages and weights within each group (advantages.py)
    score them        policy and reference, each prompt computed once for its group (preference/shared_prompt.py)
    take the loss     `grpo_loss`

The reference is the model with its LoRA off, which is the checkpoint that the run starts from. Dropout is off: the
policy that trains is the policy that was drawn from. Every group is used for one optimiser step, so the ratio of the
policy to the one that drew is 1, and there is nothing to clip.

Shapes: U prompts, G roll-outs of each, L levels.

Source: GRPO arXiv:2402.03300; Dr. GRPO arXiv:2503.20783. Order of prompts, normalisation and KL term are those of TRL
1.16's GRPOTrainer, on which this stage ran before. docs/preference.md lists the departures from MiniOneRec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments, default_data_collator

from llmrec.configs import GrpoConfig
from llmrec.evaluation.learning import NDCG
from llmrec.model.backbone import evaluation_mode
from llmrec.runtime import processes
from llmrec.sid.table import EMPTY
from llmrec.training.arguments import split_batch
from llmrec.training.grpo.groups import Group, GroupSampler
from llmrec.training.preference.averages import Averages
from llmrec.training.preference.policy import reference_log_probs
from llmrec.training.trainer import SidTrainer
from llmrec.training.validation import Validation


def deal(num_prompts: int, micro_batch_size: int, num_passes: int, num_processes: int) -> list[int]:
    """Places in an epoch's order, as the data loader deals them out to processes batch by batch.

    Each process rolls out one run of consecutive places in a step. Prompts that do not fill a last step are left out.

    Args:
        num_prompts: Number of prompts of an epoch.
        micro_batch_size: Prompts per forward pass of a process.
        num_passes: Forward passes of a process per optimiser step.
        num_processes: Number of processes.

    Returns:
        Places from 0 on; the loader gives each process every `num_processes`-th batch of them.
    """
    step = micro_batch_size * num_passes * num_processes
    places = np.arange(num_prompts // step * step).reshape(-1, num_processes, num_passes, micro_batch_size)
    return places.swapaxes(1, 2).ravel().tolist()


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """(num_examples,) the examples in the order of an epoch, the same in a run that is resumed in it."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def code_shares(weights: Tensor, is_code: Tensor, loss: Literal["grpo", "dr_grpo"]) -> Tensor:
    """Share of each code in the loss of a micro-batch.

    Args:
        weights: (U, G) weight of each roll-out.
        is_code: (U, G, L) bool, False beyond a SID's length.
        loss: `grpo` averages over the codes of a roll-out; `dr_grpo` divides by L instead of the length.

    Returns:
        (U, G, L) float32; 0 beyond a SID's length.
    """
    lengths = is_code.sum(dim=2) if loss == "grpo" else torch.full_like(weights, is_code.shape[2])
    return is_code * (weights / lengths / weights.numel()).unsqueeze(2)


def grpo_loss(
    log_probs: Tensor, reference: Tensor | None, advantages: Tensor, shares: Tensor, beta: float
) -> tuple[Tensor, Tensor | None]:
    """Loss of a micro-batch.

    Args:
        log_probs: (U, G, L) log-probability of each code under the policy, 0 beyond a SID's length.
        reference: (U, G, L) the same under the reference; None where there is no KL term.
        advantages: (U, G).
        shares: (U, G, L) of `code_shares`.
        beta: Weight of the KL term.

    Returns:
        The loss, and the (U, G, L) estimate of the KL divergence from the reference, or None.

    Source: GRPO, equations 3 and 4; the estimate is Schulman's k3. Departure: the ratio multiplies it, as in
    DeepSeek-V3.2 (arXiv:2512.02556) and by TRL's default, so that its expected gradient is that of KL(policy ||
    reference); without the ratio, as in MiniOneRec, it would be that of KL(reference || policy).
    """
    ratio = (log_probs - log_probs.detach()).exp()  # 1, with the gradient of the policy
    losses = -ratio * advantages.unsqueeze(2)
    if reference is None:
        return (losses * shares).sum(), None
    difference = reference - log_probs
    divergence = difference.exp() - difference - 1
    losses = losses + beta * ratio * divergence
    return (losses * shares).sum(), divergence.detach()


class SidGRPOTrainer(SidTrainer):
    """GRPO on groups of semantic IDs; `sibling_scores_in_forward` has to be open on the model.

    Args:
        config: Options of the stage.
        policy: The model that trains.
        sampler: Draws groups by the policy.
        args: Arguments of transformers' Trainer, which must not shuffle: `epoch_order` does.
        tokenizer: Tokenizer, which is saved with every checkpoint.
        validation: Ranks the validation examples; None ranks none.
    """

    config: GrpoConfig
    shown = ("loss", "expected_reward", "idle_share", "entropy", "kl")
    averages: Averages

    def __init__(
        self,
        config: GrpoConfig,
        policy: PeftModel,
        sampler: GroupSampler,
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        validation: Validation | None = None,
    ):
        places = deal(len(sampler.sequences), *split_batch(config), processes.count())
        super().__init__(
            config,
            model=policy,
            args=args,
            train_dataset=Dataset.from_dict({"place": places}),
            processing_class=tokenizer,
            data_collator=default_data_collator,
            validation=validation,
        )
        self.policy, self.sampler, self.averages = policy, sampler, Averages(self.accelerator)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], None]:
        """Roll out the prompts of one optimiser step, and deal the groups out to its micro-batches."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return [], None
        groups = self.roll_out(torch.cat([batch["place"] for batch in batches]).tolist())
        size = len(batches[0]["place"])
        return [self.sampler.batch(groups[first : first + size]) for first in range(0, len(groups), size)], None

    def roll_out(self, places: Sequence[int]) -> list[Group]:
        """Draw the groups of an optimiser step.

        What is drawn for a prompt depends on the seed, the step and its place alone, so a resumed run goes on with the
        roll-outs that it would have had, in any number of processes.

        Args:
            places: Places in the order of the epoch.
        """
        examples = epoch_order(self.config.seed, int(self.state.epoch or 0), len(self.sampler.sequences))[places]
        generators = [self._generator(place) for place in places]
        with evaluation_mode(self.policy), self.accelerator.autocast():
            groups = self.sampler.draw(examples.tolist(), generators)
        self._log_groups(groups)
        return groups

    def _generator(self, place: int) -> torch.Generator:
        entropy = np.random.SeedSequence([self.config.seed, self.state.global_step, place])
        return torch.Generator(self.sampler.trie.device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def _log_groups(self, groups: Sequence[Group]) -> None:
        values: dict[str, list[float]] = {
            "idle_share": [group.is_idle for group in groups],
            "hit_share": [group.is_hit for group in groups],
            "distinct_share": [group.num_distinct / len(group.completions) for group in groups],
            "expected_reward": [group.expected_reward for group in groups],
            "reward": [group.reward.mean() for group in groups],
            **{f"rewards/{name}/mean": [group.rewards[name].mean() for group in groups] for name in groups[0].rewards},
        }
        for name, of_groups in values.items():
            self.averages.add(name, torch.tensor(of_groups, dtype=torch.float64), torch.ones(1))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of the groups of a micro-batch."""
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask", "completions")}
        scores = model(**asked)
        reference = reference_log_probs(self.policy, self.accelerator, asked) if self.config.beta else None
        shares = code_shares(inputs["weights"], inputs["completions"] != EMPTY, self.config.loss)
        loss, divergence = grpo_loss(scores.log_probs, reference, inputs["advantages"], shares, self.config.beta)
        self.averages.add("entropy", scores.entropies, shares)
        if divergence is not None:
            self.averages.add("kl", divergence, shares)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages of the steps since the last entry; an evaluation is logged as it is."""
        super().log(logs if NDCG in logs else {**logs, **self.averages.take()}, start_time)
