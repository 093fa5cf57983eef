"""Options of `llmrec evaluate` and `llmrec compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmrec.configs.options import MAX_SEED, Config, StageConfig, option
from llmrec.configs.recommend import RANK_HELP, RankBy

# The names of all baselines. They stand here so that options are read without importing torch, which takes seconds.
COUNTED = ("popularity", "repeat", "markov", "item_knn", "transition_graph")
TRAINED = ("sasrec", "gru4rec", "sasrec_fields", "bert4rec")
BASELINES = (*COUNTED, *TRAINED)
BESIDE_A_MODEL = ("popularity", "repeat", "markov", "item_knn")

FIXED_RESAMPLES = "removed: the intervals always use 1000 resamples of the users"


@dataclass(kw_only=True)
class EvaluateConfig(StageConfig, Config):
    """Rank the whole catalogue for every held-out example, with a checkpoint, with baselines, or with both."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str | None = option(
        "Checkpoint directory, written by any training stage or by `llmrec extend`. Leave it out to evaluate the "
        "`baselines` alone, which needs no model.",
        None,
    )
    split: Literal["valid", "test"] = option("The held-out examples to evaluate.", "test")
    k: list[int] = option("Cut-offs of the metrics.", [5, 10])
    rank: RankBy = option(RANK_HELP, "sid")
    num_beams: int | None = option("Beam width. The default is min(items, max(50, 5k)).", None, least=1)
    length_penalty: float | None = option(
        "Power of its number of tokens that the score of an item is divided by. The default is the checkpoint's, which "
        "is 0 unless it was changed; 1 ranks by means, and puts long titles first.",
        None,
        least=0,
    )
    baselines: list[str] | None = option(
        f"Baselines to evaluate beside the model, or alone. These take seconds: {', '.join(COUNTED)}. "
        f"These are trained for minutes: {', '.join(TRAINED)}. A directory written by `llmrec teach` is a baseline, "
        f"too, and is not fitted again. "
        f"The default beside a model is {', '.join(BESIDE_A_MODEL)}.",
        None,
    )
    max_examples: int | None = option("Evaluate only a random sample of this size. The default is all.", None, least=1)
    exact_examples: int = option(
        "Rank a random sample of this size without a beam as well, to measure what the beam misses. This is slow.",
        0,
        least=0,
    )
    batch_size: int = option("Number of examples decoded together on one device.", 64, identity=False, least=1)
    device: str = option("Device of the model: auto, cpu or cuda.", "auto", identity=False)

    renamed: ClassVar[dict[str, str]] = {
        "max_rows": "max_examples",
        "exact_rows": "exact_examples",
        "bootstrap_samples": FIXED_RESAMPLES,
        "sasrec_hidden": "removed: train another size of SASRec with `llmrec.baselines.NeuralRanker`",
        "sasrec_layers": "removed: train another size of SASRec with `llmrec.baselines.NeuralRanker`",
        "precision": "removed: the weights are bfloat16 on a GPU that supports it and float32 elsewhere",
        "compile": "removed: compilation took longer than it saved below some thousand examples; "
        "`Recommender.from_pretrained(path, compiled=True)` still compiles",
    }

    def problems_without_model(self) -> list[str]:
        """Sentences about options that need a model where none is given."""
        if self.model is not None:
            return []
        found = []
        if not self.baselines:
            found.append("there is nothing to evaluate; give --model, a checkpoint, or --baselines, such as popularity")
        model_alone = {"rank": "sid", "num_beams": None, "length_penalty": None, "exact_examples": 0}
        given = [name for name, default in model_alone.items() if getattr(self, name) != default]
        if given:
            found.append(f"{', '.join(given)}: only a model has this; give --model, or leave it out")
        return found

    @property
    def named(self) -> list[str]:
        """The baselines to evaluate, by name or directory."""
        by_default = [] if self.model is None else list(BESIDE_A_MODEL)
        return by_default if self.baselines is None else self.baselines


@dataclass(kw_only=True)
class CompareConfig(Config):
    """Compare finished evaluations with the first one, by differences that are paired over users."""

    runs: list[str] = option("Two or more directories written by `llmrec evaluate` or `llmrec ensemble`.")
    names: list[str] | None = option(
        "A name for each of `runs`. Runs with the same name are training seeds of one system. The default is the path.",
        None,
    )
    systems: list[str] | None = option(
        "The system to compare from each of `runs`: ours, or one of its baselines. The default is ours, or the first "
        "baseline of a run without a model.",
        None,
    )
    html: str | None = option("File to write the comparison to, as an HTML page.", None)
    seed: int = option("Seed of the resampling of users.", 0, least=0, most=MAX_SEED)

    renamed: ClassVar[dict[str, str]] = {"bootstrap_samples": FIXED_RESAMPLES}
