"""A GRPO trainer before its first step."""

from __future__ import annotations

import pytest
import torch

from llmrec.configs import GrpoConfig
from llmrec.stages import grpo as stage
from llmrec.training.grpo.trainer import SidGRPOTrainer
from tests.support.reinforced import STEPS


@pytest.fixture
def trainer_of(toy, monkeypatch, tmp_path):
    """Function that stops the stage before its first step and returns the trainer, with a LoRA that does something."""
    trainers = []

    class Stop(Exception):
        pass

    def stop(trainer, directory):
        trainers.append(trainer)
        raise Stop

    def make(model, **options) -> SidGRPOTrainer:
        monkeypatch.setattr(stage, "train", stop)
        config = {**STEPS, "micro_batch_size": 6, **options}
        with pytest.raises(Stop):
            stage.main(GrpoConfig(out=str(tmp_path / "grpo"), catalog=toy[0], model=str(model), **config))
        trainer, generator = trainers[-1], torch.Generator().manual_seed(0)
        for name, parameter in trainer.policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=generator)
        return trainer

    return make
