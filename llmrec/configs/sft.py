"""Options of `llmrec sft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.fine_tune import FineTuneConfig
from llmrec.configs.options import option, suggestion
from llmrec.configs.tasks import TASKS

DEFAULT_INSTRUCTION = "Recommend the next item for a user with this history, oldest first:"
MAX_TASK_WEIGHT = 100  # the examples of an epoch are listed in memory, so a huge weight is a mistake
AUGMENTATION = "removed: augmented histories did not improve recommendations, see docs/tasks.md"


@dataclass(kw_only=True)
class SftConfig(FineTuneConfig):
    """Fine-tune the extended LLM on next-item prediction."""

    stage = "sft"
    renamed: ClassVar[dict[str, str]] = {
        "sid_loss": "normalize_over",
        "loss_on": "targets",
        "task_history": "removed: a task shows the latest 10 items, as in MiniOneRec",
        "task_text_tokens": "removed: a task shows the first 64 tokens of a text",
        "category_column": "removed: the first of the columns category, genres and brand is used; rename yours",
        **dict.fromkeys(("crop", "crop_ratio", "mask", "mask_ratio", "reorder", "reorder_ratio"), AUGMENTATION),
    }
    renamed_values: ClassVar[dict[str, dict[str, str]]] = {
        "normalize_over": {"full": "vocabulary"},
        "train": {"rows": "sid_tokens"},
    }

    model: str = option("Directory written by `llmrec extend`, or by an earlier `llmrec sft` to train it further.")
    instruction: str = option("Text of the prompt before the history.", DEFAULT_INSTRUCTION)
    chat_template: bool = option("Wrap the instruction in the tokenizer's chat template.", False)
    train: Literal["lora", "sid_tokens", "full"] = option(
        "Weights to train: LoRA and the embeddings of the SID and item tokens, those embeddings alone, or all weights.",
        "lora",
    )
    normalize_over: Literal["level", "vocabulary"] = option(
        "Tokens in the softmax of the loss: those of the target's level, or the whole vocabulary.", "level"
    )
    targets: Literal["every_item", "last_item"] = option(
        "Predict every item of a sequence in one pass, or make one example per target, as the papers do.", "every_item"
    )
    histories: bool = option("Train next-item prediction; false trains on `tasks` alone.", True)
    tasks: list[str] = option(f"Alignment tasks to train on as well: {', '.join(TASKS)}.", [])
    task_weights: list[float] | None = option(
        "Examples per epoch of each of `tasks`, as a multiple of the number of histories. By default the weights are "
        "equal and add up to 1.",
        None,
    )
    teacher: list[str] = option(
        "Directories written by `llmrec teach`; with several, their distributions are averaged. The LLM also learns "
        "what they would recommend after each item.",
        [],
    )
    teacher_weight: float = option(
        "Weight of the teacher's distribution in the loss, against the data's next item. 0 leaves the teacher out.",
        0.5,
        least=0,
        most=1,
    )
    teacher_temperature: float = option(
        "Temperature of the teacher's distribution; above 1 it becomes more even.", 1.0, above=0
    )
    teacher_seen: Literal["auto", "exclude", "keep"] = option(
        "Let the teacher recommend items of the history or not; auto takes what was better on the valid examples, as "
        "`llmrec teach` measured it.",
        "auto",
    )
    drawn_answers: bool = option(
        "Train on one more answer per sequence, which the teacher draws at a random place of it.", False
    )
    head_loss: Literal["softmax", "cosine"] = option(
        "Loss of head 'projection' (`llmrec extend`): cross-entropy over all items, or the cosine loss of TokenRec, "
        "with one other item per target.",
        "softmax",
    )
    item_weight: float = option(
        "Weight of the loss of item rows against that of SIDs; without item rows (`llmrec extend`) it has no effect.",
        1.0,
        least=0,
    )
    item_dropout: float = option(
        "Share of the item tokens in histories that training hides, so that items are also known by their SIDs.",
        0.0,
        least=0,
        most=1,
    )
    item_decay: float = option(
        "Weight decay of item rows, in addition to `weight_decay`, which acts on them only if all weights train.",
        0.0,
        least=0,
    )
    content_passes: int = option(
        "Passes over the items' texts at the beginning of each epoch, which train a second row of every item "
        "(CLLM4Rec). They need one token for each item, as tokenizer atomic makes them.",
        0,
        least=0,
    )
    # On MovieTweetings (recipes/beauty-cllm4rec) 10 and 100 are alike, and 1000 harms.
    content_weight: float = option(
        "Weight of the mean squared difference of an item's two rows, wherever one of them is read. Without "
        "content_passes it has no effect.",
        100.0,
        least=0,
    )
    masked_epochs: int = option(
        "Number of the last epochs that leave up to half of a history out at random and predict its last item only.",
        0,
        least=0,
    )
    packing: bool = option(
        "Pack several sequences into one row, with separate attention, instead of padding all to the longest.",
        True,
        identity=False,
    )
    max_history: int = option(
        "Largest number of items before a target; longer histories are cut into overlapping windows.", 50, least=1
    )
    sid_learning_rate: float | None = option(
        "Peak learning rate of the embeddings of the SID tokens. It has no effect if all weights train.", 1e-3, above=0
    )
    quantization: Literal["none", "nf4"] = option(
        "Keep the frozen base weights in 4 bits with bitsandbytes (not with train full).", "none"
    )
    weight_decay: float = option("Weight decay of AdamW.", 0.01, least=0)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = option(
        "Learning-rate schedule, under its name in transformers.", "cosine"
    )
    dropout: float = option(
        "Dropout on the embeddings and on the output of every attention and MLP block, for models without dropout.",
        0.0,
        least=0,
        most=1,
    )
    label_smoothing: float = option("Label smoothing of the loss.", 0.0, least=0, most=1)
    # Results agree up to rounding, as they do between devices and micro-batches.
    compile: bool = option(
        "Compile the layers of the model first. This takes a minute and saves time from some thousand steps on.",
        False,
        identity=False,
    )

    def problems(self) -> list[str]:
        """List the options that contradict each other."""
        problems = self._task_problems() + self._teacher_problems() + self._content_problems() + super().problems()
        if self.head_loss == "cosine" and (self.label_smoothing or (self.teacher and self.teacher_weight)):
            problems.append(
                "head_loss 'cosine' knows one item as the answer, so it cannot learn label_smoothing or a teacher's "
                "distribution; leave these out"
            )
        if self.train == "full" and self.quantization != "none":
            problems.append(
                "quantization 'nf4' needs train 'lora' or 'sid_tokens': 4-bit weights cannot be trained in full"
            )
        return problems

    def _teacher_problems(self) -> list[str]:
        if not self.teacher:
            return ["drawn_answers needs a teacher, which draws them; set teacher"] if self.drawn_answers else []
        problems = [] if self.histories else ["teacher needs histories to be asked about; set histories to true"]
        if len(set(self.teacher)) < len(self.teacher):
            problems.append(f"teacher names a directory twice: {self.teacher}")
        if self.drawn_answers and self.teacher_weight == 0:
            problems.append("drawn_answers has no effect with teacher_weight 0; leave one of them out")
        return problems

    def _content_problems(self) -> list[str]:
        problems = []
        if self.content_passes and self.normalize_over == "vocabulary":
            problems.append("content_passes scores words and items apart; set normalize_over to level")
        if self.content_passes and self.quantization != "none":
            problems.append(
                "content_passes trains rows beside the weights, which are not merged from 4 bits; set "
                "quantization to none"
            )
        if self.masked_epochs > self.epochs:
            problems.append(
                f"masked_epochs is {self.masked_epochs}, of {self.epochs:g} epochs; it counts the last of them"
            )
        if self.masked_epochs and self.teacher:
            problems.append(
                "masked_epochs leaves items out of histories that a teacher is asked about by their places; "
                "leave teacher out, or masked_epochs"
            )
        return problems

    def _task_problems(self) -> list[str]:
        unknown = [name for name in self.tasks if name not in TASKS]
        problems = [f"unknown task '{name}'; {suggestion(name, TASKS)}" for name in unknown]
        if len(set(self.tasks)) < len(self.tasks):
            problems.append(f"tasks repeats a name: {self.tasks}")
        weights = self.task_weights
        if weights is not None and len(weights) != len(self.tasks):
            problems.append(f"task_weights has {len(weights)} numbers for {len(self.tasks)} tasks")
        if not all(0 < weight <= MAX_TASK_WEIGHT for weight in weights or []):
            problems.append(
                f"task_weights is {weights}; every weight must be above 0 (leave the task out) and at most "
                f"{MAX_TASK_WEIGHT}"
            )
        if not (self.histories or self.tasks or self.content_passes):
            problems.append(
                "nothing to train on: histories is false and tasks is empty; set one of them, or content_passes"
            )
        return problems
