"""The optimiser of fine-tuning: AdamW with a rate of its own for the SID rows."""

from __future__ import annotations

import torch

from llmrec.configs import FineTuneConfig

SID_ROWS = "trainable_tokens"  # in the name of PEFT's parameter for trained token rows


def build_optimizer(model: torch.nn.Module, config: FineTuneConfig, fused: bool = False) -> torch.optim.Optimizer:
    """AdamW; the SID rows, which start from noise, have their own learning rate, and no decay towards zero.

    Args:
        model: What trains.
        config: Of the stage.
        fused: Whether a step is one kernel for many parameters.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rows = [p for name, p in trained if SID_ROWS in name]
    decayed = [p for name, p in trained if SID_ROWS not in name and p.dim() > 1]
    others = [p for name, p in trained if SID_ROWS not in name and p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if rows:  # of the stages, sft alone trains them
        groups.append({"params": rows, "weight_decay": 0.0, "lr": config.sid_learning_rate or config.learning_rate})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=fused)
