"""Options of `llmrec evaluate` and `llmrec compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import MAX_SEED, Config, StageConfig, option

# Keys of `llmrec.baselines.NETWORKS`, without torch, whose import costs seconds.
TRAINED = ("sasrec", "gru4rec", "sasrec_fields", "bert4rec")


@dataclass(kw_only=True)
class EvaluateConfig(StageConfig):
    """Rank the whole catalogue for every held-out row, beside the baselines."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str = option("Checkpoint directory (of `llmrec sft` or `llmrec extend`).")
    split: Literal["valid", "test"] = option("Rows to evaluate.", "test")
    k: list[int] = option("Cut-offs.", [5, 10])
    num_beams: int | None = option("Beam width; min(items, max(50, 5k)) when left out.", None, least=1)
    baselines: list[str] = option(
        "Baselines in the same table: popularity, repeat, markov, item_knn; sasrec, gru4rec, sasrec_fields, bert4rec "
        "train for minutes.",
        ["popularity", "repeat", "markov", "item_knn"],
    )
    sasrec_hidden: int | None = option(
        "Hidden size of the baseline sasrec; that of its file when left out.", None, least=2
    )
    sasrec_layers: int | None = option("Layers of the baseline sasrec, likewise.", None, least=1)
    max_rows: int | None = option("Evaluate a random sample of rows.", None, least=1)
    exact_rows: int = option("Rows, a random sample, to rank without a beam as well; slow.", 0, least=0)
    batch_size: int = option("Rows decoded together on one device.", 64, identity=False, least=1)
    bootstrap_samples: int = option("Resamples of users for the 95 % intervals.", 1000, least=1)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto: bfloat16 on a GPU that has it.", "auto")
    # Results agree up to rounding, as they do between devices and batch sizes.
    compile: bool = option(
        "Compile the model's layers first; pays off beyond some thousand rows.", False, identity=False
    )
    device: str = option("Device of the model: auto, cpu, cuda.", "auto", identity=False)


@dataclass(kw_only=True)
class CompareConfig(Config):
    """Set finished evaluations beside each other, with paired differences to the first."""

    runs: list[str] = option("Two or more directories written by `llmrec evaluate`.")
    names: list[str] | None = option(
        "Name of each of `runs`; runs of one name are training seeds of one system. Their paths when left out.", None
    )
    systems: list[str] | None = option("System of each of `runs`: ours, or a baseline of it. Ours when left out.", None)
    html: str | None = option("File to write the comparison to, as a page of its own.", None)
    bootstrap_samples: int = option("Resamples of users for the 95 % intervals.", 1000, least=1)
    seed: int = option("Seed of the resampling.", 0, least=0, most=MAX_SEED)
