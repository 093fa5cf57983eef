"""Options of `llmrec alternate`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmrec.configs.options import Config, StageConfig, option
from llmrec.configs.sft import SftConfig

HISTORIES_ONLY = "removed: alternate trains on histories only; train tasks by `llmrec sft` first"
PROMPT = "removed: the prompt of `model` is kept; another one is set by `llmrec sft`"
SFT_DEFAULT = "removed: the LLM trains with the default of `llmrec sft`"
LEVEL = "removed: the loss of a SID token is normalized over the codes of its level, as in ETEGRec"
EVERY_ITEM = "removed: every item of a sequence is a target"


def _of_sft(name: str) -> Any:  # Any, as of `option`: a dataclass field stands for a value of the option's type
    """The option of `llmrec sft` with this name: the same help, default and bounds."""
    f = SftConfig.__dataclass_fields__[name]
    return dataclasses.field(default=f.default, default_factory=f.default_factory, metadata=f.metadata)


@dataclass(kw_only=True)
class AlternateConfig(StageConfig, Config):
    """Fine-tune the extended LLM and train its item tokenizer, alternating between the two (ETEGRec)."""

    stage: ClassVar[str] = "alternate"
    renamed: ClassVar[dict[str, str]] = {
        "eval_rows": "eval_examples",
        "max_steps": "removed: set epochs, which may be a fraction",
        "micro_batch_size": "removed: a batch is one forward pass, because its targets are compared with each other; "
        "gradient_checkpointing saves memory",
        "pass_steps": "removed: a pass of the tokenizer takes as many steps as an epoch of the LLM",
        "divergence": "removed: the sequence-item alignment uses the symmetric KL divergence, as in ETEGRec",
        "psa_temperature": "removed: it is 0.07, as in ETEGRec's code",
        "tokenizer_weight_decay": "removed: it is 0.05, as in ETEGRec",
        "packing": "removed: sequences are always packed, and a model that does not keep them apart is refused",
        "precision": "removed: it is bfloat16 on a GPU that supports it, and float32 elsewhere",
        **dict.fromkeys(("instruction", "chat_template"), PROMPT),
        **dict.fromkeys(("normalize_over", "sid_loss"), LEVEL),
        **dict.fromkeys(("targets", "loss_on"), EVERY_ITEM),
        **dict.fromkeys(
            ("histories", "tasks", "task_weights", "task_history", "task_text_tokens", "category_column"),
            HISTORIES_ONLY,
        ),
        **dict.fromkeys(
            ("scheduler", "max_grad_norm", "patience", "compile", "report_to", "quantization", "lora_targets",
             "lora_dora", "lora_rslora", "lora_dropout", "crop", "crop_ratio", "mask", "mask_ratio", "reorder",
             "reorder_ratio"),
            SFT_DEFAULT,
        ),
    }  # fmt: skip
    renamed_values: ClassVar[dict[str, dict[str, str]]] = {"train": {"rows": "sid_tokens"}}

    catalog: str = _of_sft("catalog")
    model: str = option("Directory written by `llmrec extend`, or by an earlier run of sft or alternate.")
    sid: str = option("Directory written by `llmrec tokenize --method etegrec`, with the semantic IDs of `model`.")
    views: str = option("Directory written by `llmrec embed`, with the views that the tokenizer was fitted on.")
    optimization: Literal["alternating", "joint"] = option(
        "Alternate between the LLM and the tokenizer, or train both at every step (an ablation).", "alternating"
    )
    cycle_steps: int = option("Optimiser steps of the LLM between two passes of the tokenizer.", 500, least=1)
    # ETEGRec: the first 10 epochs of up to 400, and then all of them but the last up to 100.
    align_after: float = option("Share of the steps after which the alignment begins.", 0.1, least=0, most=1)
    freeze_after: float = option(
        "Share of the steps after which the tokenizer is frozen and the LLM trains on cross-entropy only.",
        0.6,
        least=0,
        most=1,
    )
    restart: bool = option(
        "Start the LLM's optimiser and learning-rate schedule anew when the tokenizer is frozen, as in ETEGRec; "
        "otherwise they last for the whole run.",
        True,
    )
    # ETEGRec's best values on Instrument and Scientific; mu is 1e-3 on Game.
    sia_weight: float = option("Weight of the sequence-item alignment (mu).", 3e-4, least=0)
    psa_weight: float = option("Weight of the preference-semantic alignment (lambda).", 1e-4, least=0)
    # ETEGRec: one of 5e-4, 1e-4, 5e-5.
    tokenizer_learning_rate: float = option("Peak learning rate of the tokenizer.", 1e-4, above=0)
    adapter_learning_rate: float = option(
        "Peak learning rate of the adapters, which map states of the LLM into the tokenizer's spaces.", 1e-3, above=0
    )

    train: Literal["lora", "sid_tokens", "full"] = _of_sft("train")
    lora_rank: int = _of_sft("lora_rank")
    lora_alpha: int = _of_sft("lora_alpha")
    max_history: int = _of_sft("max_history")
    epochs: float = _of_sft("epochs")
    batch_size: int = option("Sequences per optimiser step, all in one forward pass.", 64, least=1)
    learning_rate: float = _of_sft("learning_rate")
    sid_learning_rate: float | None = _of_sft("sid_learning_rate")
    weight_decay: float = _of_sft("weight_decay")
    warmup_steps: int = _of_sft("warmup_steps")
    dropout: float = _of_sft("dropout")
    label_smoothing: float = _of_sft("label_smoothing")
    gradient_checkpointing: bool = _of_sft("gradient_checkpointing")
    eval_steps: int | None = _of_sft("eval_steps")
    eval_examples: int = _of_sft("eval_examples")
    save_steps: int = _of_sft("save_steps")
    logging_steps: int = _of_sft("logging_steps")
    device: str = _of_sft("device")

    @property
    def aligns(self) -> bool:
        """True if an alignment loss has a weight."""
        return bool(self.sia_weight or self.psa_weight)

    def llm(self, instruction: str, chat_template: bool) -> SftConfig:
        """Options of the LLM's steps: those that sft has too, and its defaults for the rest.

        Args:
            instruction: Instruction of the checkpoint's prompt.
            chat_template: Whether that prompt uses the chat template.
        """
        shared = {f.name for f in dataclasses.fields(self)} & {f.name for f in dataclasses.fields(SftConfig)}
        config = SftConfig(
            **{name: getattr(self, name) for name in shared},
            micro_batch_size=self.batch_size,
            instruction=instruction,
            chat_template=chat_template,
        )
        config.stage, config.one_process = self.stage, True
        return config

    def problems(self) -> list[str]:
        """List the options that contradict each other."""
        if self.aligns and self.align_after >= self.freeze_after:
            return [
                f"align_after is {self.align_after} and freeze_after {self.freeze_after}: nothing would be aligned; "
                "lower the one, raise the other, or set sia_weight and psa_weight to 0"
            ]
        return []
