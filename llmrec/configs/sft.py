"""Options of `llmrec sft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.fine_tune import FineTuneConfig
from llmrec.configs.options import option, suggestion

# Keys of `llmrec.training.tasks.definitions.TASKS`, without pyarrow and the rest, whose import costs seconds.
TASK_NAMES = (
    "sid_to_title",
    "title_to_sid",
    "titles_to_sid",
    "sids_to_title",
    "description_to_sid",
    "category_to_sids",
)
DEFAULT_INSTRUCTION = "Recommend the next item for a user with this history, oldest first:"
MOST_TASK_WEIGHT = 100  # examples are listed in memory, and one list of 100 epochs is a mistake


@dataclass(kw_only=True)
class SftConfig(FineTuneConfig):
    """Fine-tune the extended LLM on next-item prediction."""

    stage = "sft"

    model: str = option("Directory written by `llmrec extend`, or by an earlier `llmrec sft` to train on from it.")
    instruction: str = option("Text before the history.", DEFAULT_INSTRUCTION)
    chat_template: bool = option("Wrap the instruction in the tokenizer's chat template.", False)
    train: Literal["lora", "rows", "full"] = option(
        "LoRA and semantic-ID rows, the rows alone, or all weights.", "lora"
    )
    sid_loss: Literal["level", "full"] = option(
        "Softmax over the level's tokens, or over the whole vocabulary.", "level"
    )
    loss_on: Literal["every_item", "last_item"] = option("Items of a sequence that are targets.", "every_item")
    histories: bool = option("Train next-item prediction; false trains on `tasks` alone.", True)
    tasks: list[str] = option(
        f"Alignment tasks beside it: {', '.join(TASK_NAMES)}.",
        [],
    )
    task_weights: list[float] | None = option(
        "Examples of each of `tasks` in an epoch, as a multiple of the histories; equal and 1 in all when left out.",
        None,
    )
    # MiniOneRec (2510.24431) trains on histories of 10.
    task_history: int = option("Items of a history in a task.", 10, least=1)
    task_text_tokens: int = option("Tokens kept of a title or a description in a task.", 64, least=1)
    category_column: str | None = option(
        "Column of the task category_to_sids; the first of category, genres, brand when left out.", None
    )
    # The ratios are ours; CL4SRec (2010.14395) tunes them for each dataset.
    crop: float = option("Probability that a contiguous part of a history is kept.", 0.0, least=0, most=1)
    crop_ratio: float = option("Share of the items that a crop keeps.", 0.6, least=0, most=1)
    mask: float = option("Probability that items of a history are left out.", 0.0, least=0, most=1)
    mask_ratio: float = option("Share of the items that are left out.", 0.3, least=0, most=1)
    reorder: float = option("Probability that a contiguous part of a history is shuffled.", 0.0, least=0, most=1)
    reorder_ratio: float = option("Share of the items that are shuffled.", 0.6, least=0, most=1)
    packing: bool = option(
        "Lay several sequences into one row, kept apart, instead of padding each to the longest.", True, identity=False
    )
    max_history: int = option("Items before a target; longer sequences are cut into overlapping windows.", 50, least=1)
    sid_learning_rate: float | None = option(
        "Peak learning rate of the semantic-ID rows, unless all weights train.", 1e-3, above=0
    )
    dropout: float = option(
        "Dropout on the embeddings and on what each block of a layer adds, for models without one of their own.",
        0.0,
        least=0,
        most=1,
    )
    label_smoothing: float = option("Label smoothing of the item loss.", 0.0, least=0, most=1)
    # Results agree up to rounding, as they do between devices and micro-batches.
    compile: bool = option(
        "Compile the model's layers first; a minute, which pays off beyond some thousand steps.",
        False,
        identity=False,
    )

    def problems(self) -> list[str]:
        problems = self._task_problems() + super().problems()
        if self.train == "full" and self.quantization != "none":
            problems.append("quantization 'nf4' needs train 'lora' or 'rows': 4-bit weights cannot be trained in full")
        for name in ("lora_dora", "lora_rslora"):
            if getattr(self, name) and self.train != "lora":
                problems.append(f"{name} needs train 'lora'; it is '{self.train}'")
        return problems

    def _task_problems(self) -> list[str]:
        unknown = [name for name in self.tasks if name not in TASK_NAMES]
        problems = [f"unknown task '{name}'; {suggestion(name, TASK_NAMES)}" for name in unknown]
        if len(set(self.tasks)) < len(self.tasks):
            problems.append(f"tasks repeats a name: {self.tasks}")
        weights = self.task_weights
        if weights is not None and len(weights) != len(self.tasks):
            problems.append(f"task_weights has {len(weights)} numbers for {len(self.tasks)} tasks")
        if not all(0 < weight <= MOST_TASK_WEIGHT for weight in weights or []):
            problems.append(
                f"task_weights is {weights}; every weight must be above 0 (leave the task out) and at most "
                f"{MOST_TASK_WEIGHT}"
            )
        if not self.histories and not self.tasks:
            problems.append("nothing to train on: histories is false and tasks is empty; set one of them")
        if not self.histories and (self.crop or self.mask or self.reorder):
            problems.append("crop, mask and reorder vary histories, and histories: false trains none; leave them out")
        return problems
