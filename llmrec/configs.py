"""One dataclass per stage: its options, what they mean, their defaults and their bounds.

Nothing here imports torch: `llmrec --help` builds its flags from these fields (`llmrec.options`), and what is wrong
with options alone is said before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmrec.options import MAX_SEED, Config, StageConfig, copied, option
from llmrec.suggest import suggestion

if TYPE_CHECKING:
    from llmrec.tokenizers import ItemTokenizer

# Keys of `llmrec.tasks.TASKS`, without pyarrow and the rest, whose import costs seconds.
TASK_NAMES = (
    "sid_to_title",
    "title_to_sid",
    "titles_to_sid",
    "sids_to_title",
    "description_to_sid",
    "category_to_sids",
)
MOST_TASK_WEIGHT = 100  # examples are listed in memory, and one list of 100 epochs is a mistake


@dataclass(kw_only=True)
class PrepareConfig(StageConfig):
    """Read a dataset, filter it, split it and write the catalogue."""

    dataset: str | None = option(
        "Known dataset: movietweetings, amazon14-beauty, amazon18-games, minionerec-industrial, foursquare-nyc, "
        "simulated; or leave out.",
        None,
    )
    interactions: str | None = option("CSV or parquet file of interactions, instead of `dataset`.", None)
    items: str | None = option("CSV or parquet file of items that goes with `interactions`.", None)
    user_column: str = option("Column of the user in `interactions`.", "user_id")
    item_column: str = option("Column of the item in `interactions` and `items`.", "item_id")
    timestamp_column: str = option("Column of the time in `interactions`.", "timestamp")
    title_column: str = option("Column of the title in `items`.", "title")
    k_core: int = option("Drop users and items with fewer interactions, repeatedly; 0 keeps all.", 5, least=0)
    split: Literal["leave_one_out", "temporal", "published"] = option(
        "leave_one_out: last item of a user is test, last but one valid. temporal: 8:1:1 of all interactions by time. "
        "published: the rows that came with the dataset (with k_core 0).",
        "leave_one_out",
    )
    max_history: int = option("Items kept of a validation or test history, the latest ones.", 50, least=1)
    num_users: int | None = option(
        "Keep a random sample of users of the k-core, and the items they have (all items where k_core is 0).",
        None,
        least=1,
    )
    simulated_users: int = option("Users of the dataset 'simulated'.", 2000, least=1)
    simulated_items: int = option("Items of the dataset 'simulated'.", 500, least=1)


@dataclass(kw_only=True)
class EmbedConfig(StageConfig):
    """Turn items into vectors, one file per view."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    views: list[str] = option(
        "Views to build: text, collaborative, sasrec, lightgcn, famae, spatial, geographic, and the names given by "
        "`external`.",
        ["text", "collaborative"],
    )
    text_encoder: str | None = option(
        "sentence-transformers model (Hub id or path), or 'tfidf' for TF-IDF with truncated SVD.", None
    )
    text_template: str = option("What is embedded, from the columns of items.parquet.", "{text}")
    text_dim: int = option("Dimension of TF-IDF vectors after SVD.", 128, least=1)
    # That of LightGCN's paper (2002.02126); SASRec's (1808.09781) is 50.
    collaborative_dim: int = option("Dimension of collaborative, sasrec, lightgcn and spatial vectors.", 64, least=1)
    collaborative_window: int = option(
        "Items on either side that count as co-occurring in a training sequence.", 5, least=1
    )
    spatial_neighbours: int = option("Nearest places that an item is joined to in the graph of spatial.", 10, least=1)
    # 2^15 waves per turn of the globe: the shortest is 1.2 km.
    geographic_frequencies: int = option("Frequencies of latitude and longitude in geographic vectors.", 16, least=1)
    # ReSID (2602.02338).
    famae_dim: int = option("Dimension of each field's part of famae vectors, the item's own included.", 128, least=1)
    # The content of the files, and not their paths, belongs to the run's identity: they are inputs.
    external: list[str] = option(
        "Views made elsewhere, each as name=path: .parquet with item_id and vector, or .npy in catalogue order.",
        [],
        identity=False,
    )
    batch_size: int = option("Texts per encoder batch.", 128, identity=False, least=1)
    device: str = option(
        "Device of the text encoder, sasrec, lightgcn and famae: auto, cpu, cuda.", "auto", identity=False
    )


@dataclass(kw_only=True)
class TokenizeConfig(StageConfig):
    """Learn a semantic ID for every item from its views."""

    out: str | None = option("Directory to write; needed without `compare`.", None, identity=False)
    catalog: str | None = option("Directory written by `llmrec prepare`; needed without `compare`.", None)
    views: str | None = option(
        "Directory written by `llmrec embed`; p5_cid, atomic, random and sorted read it for the report alone.", None
    )
    view_names: list[str] | None = option("Views to use; all of the directory when left out.", None)
    method: Literal[
        "rq_kmeans",
        "rq_kmeans_plus",
        "rvq",
        "rq_vae",
        "cost",
        "letter",
        "simcit",
        "opq",
        "fsq",
        "hierarchical_kmeans",
        "gaoq",
        "p5_cid",
        "atomic",
        "random",
        "sorted",
    ] = option(
        "Item tokenizer; each has options of its own, which `--help` lists for the one that is named.", "rq_kmeans"
    )
    collision: Literal[
        "suffix_ordinal", "suffix_if_collided", "sinkhorn_reassign", "knn_cap", "hungarian_leaf", "accept"
    ] = option("How items with equal codes become distinct.", "suffix_ordinal")
    allow_collapse: bool = option("Keep semantic IDs of which a level uses hardly any codes.", False)
    probe: bool = option("Measure how well histories foretell the semantic IDs; a minute or two on a CPU.", False)
    append: str | None = option(
        "Directory of published semantic IDs, whose tokenizer gives the new items of `catalog` theirs; its method, "
        "views, options and collision policy hold.",
        None,
    )
    compare: list[str] | None = option("Directories to set beside each other, instead of making one.", None)
    device: str = option("Device of the tokenizer and the probe: auto, cpu, cuda.", "auto", identity=False)

    @classmethod
    def completed(cls, given: dict[str, Any]) -> type[TokenizeConfig]:
        """With the options of the method, which its class declares; loads torch."""
        from llmrec.tokenizers import TOKENIZERS

        method = given.get("method", cls.method)
        if cls is not TokenizeConfig or method not in TOKENIZERS:
            return cls
        own, hints = {f.name for f in dataclasses.fields(cls)}, typing.get_type_hints(TOKENIZERS[method])
        return dataclasses.make_dataclass(
            cls.__name__,
            [(f.name, hints[f.name], copied(f)) for f in dataclasses.fields(TOKENIZERS[method]) if f.name not in own],
            bases=(cls,),
            kw_only=True,
            namespace={"__doc__": cls.__doc__, "__module__": cls.__module__},
        )

    def tokenizer(self) -> ItemTokenizer:
        """The tokenizer that the options describe, not fitted."""
        from llmrec.tokenizers import TOKENIZERS

        kind = TOKENIZERS[self.method]
        return kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(kind)})

    def problems(self) -> list[str]:
        needed = () if self.compare else ("out", "catalog")
        problems = [f"'{name}' is required" for name in needed if getattr(self, name) is None]
        names = self.view_names
        if names is not None and len(set(names)) < len(names):
            problems.append(f"view_names is {names}; name each view once")
        if type(self) is not TokenizeConfig:
            try:
                self.tokenizer()
            except ValueError as error:
                problems.append(str(error).removesuffix("."))
        return problems


@dataclass(kw_only=True)
class ExtendConfig(StageConfig):
    """Add the semantic-ID tokens to a causal LLM and save it as the base of fine-tuning."""

    sid: str = option("Directory written by `llmrec tokenize`.")
    model: str = option(
        "Hub id or path of a causal LLM; a checkpoint of llmrec, which takes up a table appended to its own; or "
        "'micro' for a small new one with a word-level tokenizer."
    )
    catalog: str | None = option(
        "Directory written by `llmrec prepare`; 'micro' takes its vocabulary from the titles, and rows their words.",
        None,
    )
    rows: Literal["noise", "titles"] = option(
        "First rows of the codes: noise, or leaning towards the words of their items' titles.", "noise"
    )
    template: str = option("Token of a code; {letter} or {level}, and {code}.", "<{letter}_{code}>")
    spare_codes: int = option("Token rows per level kept free for codes of later items.", 0, least=0)
    weights: Literal["pretrained", "random"] = option(
        "Those of `model`, or new ones drawn by its config, to train from scratch.", "pretrained"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option("Type of the saved weights.", "auto")
    micro_layers: int = option("Layers of 'micro'.", 2, least=1)
    micro_hidden: int = option("Hidden size of 'micro'.", 128, least=32)
    micro_dropout: float = option("Attention dropout of 'micro'.", 0.0, least=0, most=1)
    micro_words: int = option("Largest word vocabulary of 'micro'.", 8000, least=64)


@dataclass(kw_only=True)
class SftConfig(StageConfig):
    """Fine-tune the extended LLM on next-item prediction."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str = option("Directory written by `llmrec extend`, or by an earlier `llmrec sft` to train on from it.")
    instruction: str = option(
        "Text before the history.", "Recommend the next item for a user with this history, oldest first:"
    )
    chat_template: bool = option("Wrap the instruction in the tokenizer's chat template.", False)
    train: Literal["lora", "rows", "full"] = option(
        "LoRA and semantic-ID rows, the rows alone, or all weights.", "lora"
    )
    lora_rank: int = option("Rank of LoRA.", 16, least=1)
    lora_alpha: int = option("Scale of LoRA, divided by its rank (by the root of it under lora_rslora).", 32, least=1)
    lora_dropout: float = option("Dropout on LoRA's input.", 0.0, least=0, most=1)
    lora_targets: list[str] = option("Module names that LoRA adapts.", ["all-linear"])
    lora_dora: bool = option("Train the norms of the adapted weights apart from their directions (DoRA).", False)
    lora_rslora: bool = option("Scale LoRA by the root of its rank, for high ranks (rsLoRA).", False)
    quantization: Literal["none", "nf4"] = option("4-bit base weights by bitsandbytes (not with full).", "none")
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
    epochs: float = option("Passes over the training sequences.", 3.0, above=0)
    max_steps: int = option("Optimiser steps, instead of `epochs`, where positive.", -1, least=-1)
    batch_size: int = option("Sequences per optimiser step, over all processes.", 64, least=1)
    micro_batch_size: int = option("Sequences per forward pass on one device.", 64, identity=False, least=1)
    learning_rate: float = option("Peak learning rate of LoRA, or of all weights.", 2e-4, above=0)
    sid_learning_rate: float | None = option(
        "Peak learning rate of the semantic-ID rows, unless all weights train.", 1e-3, above=0
    )
    weight_decay: float = option("AdamW weight decay.", 0.01, least=0)
    warmup_steps: int = option("Optimiser steps of linear warm-up.", 20, least=0)
    scheduler: str = option("Learning-rate schedule, as transformers names it.", "cosine")
    dropout: float = option(
        "Dropout on the embeddings and on what each block of a layer adds, for models without one of their own.",
        0.0,
        least=0,
        most=1,
    )
    label_smoothing: float = option("Label smoothing of the item loss.", 0.0, least=0, most=1)
    max_grad_norm: float = option("Gradient clipping.", 1.0, least=0)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto: bfloat16 on a GPU that has it.", "auto")
    gradient_checkpointing: bool = option("Trade compute for memory.", False, identity=False)
    # Results agree up to rounding, as they do between devices and micro-batches.
    compile: bool = option(
        "Compile the model's layers first; a minute, which pays off beyond some thousand steps.",
        False,
        identity=False,
    )
    eval_steps: int | None = option(
        "Rank valid rows every so many optimiser steps and at the end, and save the best of these steps.", None, least=1
    )
    patience: int | None = option("Evaluations without a better ndcg@10 after which training stops.", None, least=1)
    eval_rows: int = option("Valid rows to rank for eval_steps, a random sample if there are more.", 2000, least=1)
    save_steps: int = option(
        "Optimiser steps between resumable checkpoints; with eval_steps each evaluation has one instead.",
        200,
        identity=False,
        least=1,
    )
    logging_steps: int = option("Optimiser steps between log lines.", 20, identity=False, least=1)
    report_to: list[str] = option("Trackers, as transformers names them.", [], identity=False)
    device: str = option("auto or cpu.", "auto", identity=False)

    def problems(self) -> list[str]:
        problems = self._task_problems()
        if self.patience and self.eval_steps is None:
            problems.append("patience counts evaluations and needs eval_steps, the steps between them")
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
        if not all(0 < weight <= MOST_TASK_WEIGHT for weight in weights or []):  # so written, NaN is refused too
            problems.append(
                f"task_weights is {weights}; every weight must be above 0 (leave the task out) and at most "
                f"{MOST_TASK_WEIGHT}"
            )
        if not self.histories and not self.tasks:
            problems.append("nothing to train on: histories is false and tasks is empty; set one of them")
        if not self.histories and (self.crop or self.mask or self.reorder):
            problems.append("crop, mask and reorder vary histories, and histories: false trains none; leave them out")
        return problems


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


@dataclass(kw_only=True)
class RecommendConfig(Config):
    """Recommend items for histories given on the command line or in a file."""

    model: str = option("Checkpoint directory or Hub id.")
    history: list[str] | None = option("item_ids of one user, oldest first.", None)
    input: str | None = option(
        "JSON lines file: one {'history': [...], 'exclude': [...], 'allow': [...]} per user.", None
    )
    k: int = option("Items per user.", 10, least=1)
    exclude_seen: bool = option("Leave out items of the history.", True)
    where: list[str] | None = option(
        "Conditions on items that answers must meet, such as 'price <= 20'; needs `catalog`.", None
    )
    catalog: str | None = option("Directory written by `llmrec prepare`, for titles and `where`.", None)
    device: str = option("Device of the model: auto, cpu, cuda.", "auto")


@dataclass(kw_only=True)
class QuickstartConfig(Config):
    """Run every stage on MovieTweetings (or the simulator) and print ours beside the baselines."""

    out: str = option("Directory of all stages.", "llmrec-quickstart")
    model: str = option(
        "Hub id or path of a causal LLM; 'micro' trains a small new one; 'auto' takes SmolLM2-135M on a GPU.", "auto"
    )
    dataset: str = option("Known dataset to run on.", "movietweetings")
    num_users: int | None = option("Keep a random sample of users.", None, least=1)
    epochs: float | None = option("Passes over the training sequences.", None, above=0)
    overwrite: bool = option("Start again.", False)
    seed: int = option("Seed of every stage.", 0, least=0, most=MAX_SEED)


STAGES: dict[str, type] = {
    "prepare": PrepareConfig,
    "embed": EmbedConfig,
    "tokenize": TokenizeConfig,
    "extend": ExtendConfig,
    "sft": SftConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "recommend": RecommendConfig,
    "quickstart": QuickstartConfig,
}
