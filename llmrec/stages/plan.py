"""The settings of `llmrec run` after `prepare`, which follow from the size of the data, its columns and the machine.

They are those of recipes/movietweetings-micro, whose README says how they were chosen, except that a large log gets
fewer passes on a CPU. Each choice has a sentence.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

import torch

from llmrec.configs import RunConfig
from llmrec.configs.recommend import RankBy
from llmrec.data import columns
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import JsonObject
from llmrec.stages.extend import MICRO
from llmrec.tokenizers.config import suited_codebook_size

SASREC, ITEM_KNN = "sasrec", "item_knn"
# On MovieTweetings SASRec's best epoch of 64 was the 44th, and 12 epochs were best for the LLM.
EPOCHS, LORA_EPOCHS, SASREC_EPOCHS = 12.0, 3.0, 64
# Training interactions that the LLM and SASRec pass over on a CPU for each 1,000 users, and no more after the first
# 10,000 users; but some passes are made in any case. 120,000 of the one and 460,000 of the other took 100 CPU seconds.
PASSED, SASREC_PASSED, MOST_THOUSANDS = 200_000, 700_000, 10
LEAST_EPOCHS, LEAST_SASREC_EPOCHS = 2.0, 5


@dataclass(frozen=True)
class Plan:
    """Settings of the stages after `prepare`.

    Attributes:
        model: Hub id, path or 'micro'.
        views: Sources of item vectors.
        num_items: Size of the catalogue.
        sasrec_epochs: Largest number of epochs of the teacher SASRec.
        epochs: Passes of the LLM over the training sequences.
        reasons: A sentence for each choice.
    """

    model: str
    views: list[str]
    num_items: int
    sasrec_epochs: int
    epochs: float
    reasons: list[str] = field(default_factory=list)

    @property
    def is_micro(self) -> bool:
        """True for a new small model, which is trained in full and ranks by item rows in one pass."""
        return self.model == MICRO

    @property
    def rank(self) -> RankBy:
        """Scores that the model ranks by."""
        return "items" if self.is_micro else "sid"

    @property
    def semantic_ids(self) -> JsonObject:
        """Options of `tokenize`: short semantic IDs for the micro model, which ranks by item rows."""
        if self.is_micro:
            options = {"num_levels": 2, "codebook_size": suited_codebook_size(self.num_items, 128)}
            return {"collision": "suffix_if_collided", "options": options}
        return {"options": {"codebook_size": suited_codebook_size(self.num_items, 64)}}

    @property
    def teachers(self) -> dict[str, JsonObject]:
        """Rankers that teach the LLM, with their options. SASRec has half its default size, to bound its time.

        Counts to the power of 2 are sharper probabilities: on valid, the mean of both teachers then ranks better.
        """
        return {SASREC: {"hidden": 64, "max_epochs": self.sasrec_epochs}, ITEM_KNN: {"power": 2.0}}

    @property
    def baselines(self) -> list[str]:
        """Baselines besides the teachers; the graph of transitions compares items by the words of their text."""
        return ["popularity", "markov", *(["transition_graph"] if "text" in self.views else [])]

    @property
    def fine_tuning(self) -> JsonObject:
        """Options of `sft`."""
        if not self.is_micro:
            return {"train": "lora", "batch_size": 64, "epochs": self.epochs}
        return {
            "instruction": "Recommend the next item:",  # shorter than by default, since every sequence repeats it
            "train": "full",
            "teacher_weight": 0.8,
            "teacher_temperature": 0.5,
            "learning_rate": 2e-3,
            "batch_size": 32,
            "micro_batch_size": 32,
            "epochs": self.epochs,
            "dropout": 0.2,
            "label_smoothing": 0.1,
            "item_dropout": 0.3,
            "item_decay": 1.0,
        }


def make_plan(config: RunConfig, catalog: Catalog) -> Plan:
    """Choose the settings for a catalogue.

    Args:
        config: Options of the run, some of which may be given.
        catalog: Catalogue that `prepare` wrote.
    """
    has_text = any(re.search(r"\w", text or "") for text in catalog.items[columns.TEXT].to_pylist())
    targets, most = max(1, int(catalog.training_counts.sum())), EPOCHS if config.model == MICRO else LORA_EPOCHS
    epochs, sasrec_epochs = most, SASREC_EPOCHS
    if not torch.cuda.is_available():
        thousands = min(max(len(catalog.train) / 1000, 1), MOST_THOUSANDS)
        epochs = round(min(most, max(LEAST_EPOCHS, thousands * PASSED / targets)), 1)
        sasrec_epochs = min(SASREC_EPOCHS, max(LEAST_SASREC_EPOCHS, round(thousands * SASREC_PASSED / targets)))
    bounded = "" if (epochs, sasrec_epochs) == (most, SASREC_EPOCHS) else (
        f", which bounds the time on a CPU with {targets:,} interactions; --epochs sets more"
    )  # fmt: skip
    plan = Plan(
        config.model,
        ["text", "collaborative"] if has_text else ["collaborative"],
        catalog.num_items,
        sasrec_epochs,
        config.epochs or epochs,
    )
    return dataclasses.replace(plan, reasons=_reasons(plan, bounded))


def _reasons(plan: Plan, bounded: str) -> list[str]:
    views = "text and collaborative vectors" if "text" in plan.views else (
        "collaborative vectors alone, because no item has a title or another text"
    )  # fmt: skip
    size = plan.semantic_ids["options"]["codebook_size"]
    origin = "a small new one, because --model names no other" if plan.is_micro else "as asked for, with LoRA"
    return [
        f"embed: {views}.",
        f"tokenize: {size} codes per level, because there are {plan.num_items:,} items.",
        f"extend: the model is {plan.model}, {origin}.",
        f"teach, sft: at most {plan.sasrec_epochs} epochs of SASRec and {plan.epochs:g} of the model{bounded}.",
    ]
