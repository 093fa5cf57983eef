"""DPO and softmax-DPO on semantic IDs: a small trainer on `transformers.Trainer`.

Examples are item rows, which the collator turns into tokens. A prompt is computed once for its target and all of its
negatives (preference/shared_prompt.py). The reference is computed in each step, by the same pass with the LoRA off:
stored log-probabilities would differ from it by the rounding of other batches, so that in bfloat16 the first loss would
not be ln 2.

Shapes: B prompts, M negatives, L levels.

Source: DPO arXiv:2305.18290; S-DPO arXiv:2406.09215; conservative pairs as RosePO arXiv:2410.12519 smooths them; the
likelihood of the target as Iterative RPO arXiv:2404.19733 adds it. Names in the log are those of TRL's DPOTrainer.
"""

from __future__ import annotations

from typing import Literal

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import softplus
from transformers import PreTrainedTokenizerBase, TrainingArguments

from llmrec.configs import DpoConfig
from llmrec.evaluation.learning import NDCG
from llmrec.sid.table import EMPTY
from llmrec.training.dpo.preferences import PreferenceCollator
from llmrec.training.preference.averages import Averages
from llmrec.training.preference.policy import reference_log_probs
from llmrec.training.trainer import SidTrainer
from llmrec.training.validation import Validation


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


def target_nll(log_probs: Tensor, is_code: Tensor) -> Tensor:
    """Negative log-likelihood of each target, as the mean over its codes: the loss of sft without label smoothing.

    Args:
        log_probs: (B, L) log-probability of each code of the target, 0 beyond its length.
        is_code: (B, L) bool, False beyond its length.

    Returns:
        (B,) values.

    Source: Iterative RPO (arXiv:2404.19733), which divides by the length too. OneRec (arXiv:2502.18965) sums over the
    codes and weighs the other term: its L_NTP + lambda L_DPO is lambda times the loss here with weight L / lambda.
    """
    return -log_probs.sum(dim=1) / is_code.sum(dim=1)


class SidDPOTrainer(SidTrainer):
    """DPO with many negatives per prompt; `sibling_scores_in_forward` has to be open on the model.

    Args:
        config: Options of the stage.
        policy: The model that trains.
        args: Arguments of transformers' Trainer.
        examples: Examples of `Preferences.examples`.
        collator: Makes batches of them.
        tokenizer: Tokenizer, which is saved with every checkpoint.
        validation: Ranks the validation examples; None ranks none.
    """

    config: DpoConfig
    shown = ("loss", "nll_loss", "rewards/accuracies", "rewards/margins", "drift")
    averages: Averages

    def __init__(
        self,
        config: DpoConfig,
        policy: PeftModel,
        args: TrainingArguments,
        examples: Dataset,
        collator: PreferenceCollator,
        tokenizer: PreTrainedTokenizerBase,
        validation: Validation | None = None,
    ):
        super().__init__(
            config,
            model=policy,
            args=args,
            train_dataset=examples,
            processing_class=tokenizer,
            data_collator=collator,
            validation=validation,
        )
        self.policy, self.averages = policy, Averages(self.accelerator)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean loss of the prompts of a micro-batch."""
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask", "completions")}
        scores = model(**asked)
        policy = scores.log_probs.sum(dim=-1)
        ratios = policy - reference_log_probs(self.policy, self.accelerator, asked).sum(dim=-1)
        is_code = asked["completions"] != EMPTY
        is_pair = is_code[:, 1:, 0]
        losses, margins = preference_loss(ratios, is_pair, inputs["smoothing"], self.config.beta, self.config.loss)
        self._add_averages(policy, ratios, margins, is_code, scores.entropies)
        if self.config.sft_weight:
            nll = target_nll(scores.log_probs[:, 0], is_code[:, 0])
            self.averages.add("nll_loss", nll, is_code[:, 0, 0])
            losses = losses + self.config.sft_weight * nll
        return losses.mean()

    def _add_averages(
        self, policy: Tensor, ratios: Tensor, margins: Tensor, is_code: Tensor, entropies: Tensor
    ) -> None:
        """Collect what the log shows; `drift` is the mean |log ratio| to the reference."""
        exists, beta, add = is_code[..., 0], self.config.beta, self.averages.add
        target, negatives = exists[:, 0], exists[:, 1:]
        add("rewards/chosen", beta * ratios[:, 0], target)
        add("rewards/rejected", beta * ratios[:, 1:], negatives)
        add("rewards/margins", margins, negatives)
        add("rewards/accuracies", (margins > 0).float(), negatives)
        add("logps/chosen", policy[:, 0], target)
        add("logps/rejected", policy[:, 1:], negatives)
        add("drift", ratios.abs(), exists)
        add("entropy", entropies, is_code)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averages of the steps since the last entry; an evaluation is logged as it is."""
        super().log(logs if NDCG in logs else {**logs, **self.averages.take()}, start_time)
