"""DPO and softmax-DPO on TRL's DPOTrainer, with one pass over a prompt for all of its completions.

Departures from TRL: the examples are item rows that the collator turns into tokens; a target may have many negatives;
and the log-probabilities are those of preference/shared_prompt.py, instead of TRL's fused head over repeated prompts.
Two of its methods are overridden, `_prepare_dataset` and `_compute_loss`. The reference is computed in each step, by
the same pass with the LoRA off: stored log-probabilities would differ from it by the rounding of other batches, so that
in bfloat16 the first loss would not be ln 2.

Shapes: B prompts, M negatives.

Source: DPO arXiv:2305.18290; S-DPO arXiv:2406.09215; conservative pairs as RosePO arXiv:2410.12519 smooths them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig as TrlDpoConfig
from trl import DPOTrainer

from llmrec.configs import DpoConfig
from llmrec.runtime.manifest import JsonObject
from llmrec.sid.table import EMPTY
from llmrec.training import trainer as shared
from llmrec.training.dpo.preferences import PreferenceCollator
from llmrec.training.trainer import SidTrainer, shared_arguments, use_one_gpu
from llmrec.training.validation import Validation, evaluation_mode
from llmrec.training.weights import without_renaming_warning


def preference_loss(
    ratios: Tensor, is_pair: Tensor, smoothing: Tensor, beta: float, loss: Literal["sdpo", "dpo"]
) -> tuple[Tensor, Tensor]:
    """Loss of each prompt.

    S-DPO is -log sigmoid(-log sum exp(beta (r_d - r_w))), computed as softplus(logsumexp(…)): written out it overflows
    where a negative is ahead by 90 nats, and its gradient is no number.

    Args:
        ratios: (B, 1 + M) log-probability under the policy less that under the reference, the target's first.
        is_pair: (B, M) bool, whether there is such a negative; at least one of each prompt.
        smoothing: (B, M) probability that a pair is the wrong way round; read by `dpo` alone.
        beta: How strongly the policy is held to the reference.
        loss: Softmax over the negatives, or the mean over pairs.

    Returns:
        (B,) losses and (B, M) margins beta (r_w - r_d).
    """
    margins = beta * (ratios[:, :1] - ratios[:, 1:])
    if loss == "dpo":
        pairs = (1 - smoothing) * softplus(-margins) + smoothing * softplus(margins)
        return (pairs * is_pair).sum(dim=1) / is_pair.sum(dim=1), margins
    return softplus(margins.neg().masked_fill(~is_pair, -torch.inf).logsumexp(dim=1)), margins


class SidDPOTrainer(SidTrainer, DPOTrainer):
    """DPOTrainer over item rows, siblings and many negatives; `sibling_scores_in_forward` has to be open."""

    shown = ("loss", "rewards/accuracies", "rewards/margins", "drift")

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        """As it is: the collator makes the tokens."""
        return dataset

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False) -> Tensor:
        """Mean loss of the prompts of a batch."""
        smoothing, asked = inputs["smoothing"], {name: inputs[name] for name in inputs if name != "smoothing"}
        scores = model(**asked)
        policy = scores.log_probs.sum(dim=-1)
        ratios = policy - self.reference_scores(asked)
        is_code = asked["completions"] != EMPTY
        is_pair = is_code[:, 1:, 0]
        losses, margins = preference_loss(ratios, is_pair, smoothing, self.config.beta, self.config.loss)
        with torch.no_grad():
            self._keep_metrics(policy, ratios, margins, is_code, scores.entropies)
        return losses.mean()

    @torch.no_grad()
    def reference_scores(self, asked: dict[str, Tensor]) -> Tensor:
        """(B, 1 + M) log-probabilities with the LoRA off and without dropout."""
        policy = self.accelerator.unwrap_model(self.model)
        with policy.disable_adapter(), evaluation_mode(policy), self.accelerator.autocast():
            return policy(**asked).log_probs.sum(dim=-1)

    def _keep_metrics(
        self, policy: Tensor, ratios: Tensor, margins: Tensor, is_code: Tensor, entropies: Tensor
    ) -> None:
        """Means over all processes, under the names of TRL; `drift` is the mean |log ratio| to the reference."""
        exists, beta = is_code[..., 0], self.config.beta
        won, lost = exists[:, 0], exists[:, 1:]
        of = {
            "rewards/chosen": (beta * ratios[:, 0], won),
            "rewards/rejected": (beta * ratios[:, 1:], lost),
            "rewards/margins": (margins, lost),
            "rewards/accuracies": ((margins > 0).float(), lost),
            "logps/chosen": (policy[:, 0], won),
            "logps/rejected": (policy[:, 1:], lost),
            "drift": (ratios.abs(), exists),
            "entropy": (entropies, is_code),
        }
        sums = torch.stack([torch.stack([(x * where).sum(), where.sum()]) for x, where in of.values()])
        totals = self.accelerator.gather(sums.unsqueeze(0)).sum(dim=0).tolist()
        for name, (total, count) in zip(of, totals, strict=True):
            self._metrics["train"][name].append(total / count)


def make_trainer(
    config: DpoConfig,
    model: PreTrainedModel,
    lora: LoraConfig,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    collator: PreferenceCollator,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
    validation: Validation | None = None,
) -> SidDPOTrainer:
    """TRL's trainer over preferences; it puts the LoRA on the model."""
    with without_renaming_warning():
        arguments = TrlDpoConfig(
            **shared_arguments(config, directory, device, dtype),
            beta=config.beta,
        )
    use_one_gpu(arguments, config)
    with without_renaming_warning():
        return SidDPOTrainer(
            config=config,
            model=model,
            peft_config=lora,
            args=arguments,
            train_dataset=examples,
            data_collator=collator,
            processing_class=tokenizer,
            validation=validation,
        )


def train(trainer: SidDPOTrainer, directory: Path) -> JsonObject:
    """Train to the end, from the newest whole checkpoint where there is one; counts of the manifest."""
    counts, epochs_per_second = shared.train(trainer, directory)
    prompts = len(trainer.train_dataset)
    return {**counts, "prompts": prompts, "prompts_per_second": round(prompts * epochs_per_second, 1)}
