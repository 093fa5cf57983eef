"""One dataclass per stage, read from flat YAML and flags; unknown keys and wrong types are errors, all at once.

Nothing here imports torch: `llmrec --help` builds its flags from these fields. A field with `help` metadata explains
itself in `--help` and in the docs; `identity=False` marks what does not change a result (where it is written, which
device computes it), so that a run may be resumed with another value.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal


def option(help: str, default: Any = MISSING, identity: bool = True) -> Any:
    """A config field with its explanation; list defaults are copied for each instance."""
    metadata = {"help": help, "identity": identity}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class StageConfig:
    out: str = option("Directory to write.", identity=False)
    overwrite: bool = option("Replace the result of another run in `out`.", False, identity=False)
    seed: int = option("Seed of everything random in this stage.", 0)


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
    k_core: int = option("Drop users and items with fewer interactions, repeatedly; 0 keeps all.", 5)
    split: Literal["leave_one_out", "temporal", "published"] = option(
        "leave_one_out: last item of a user is test, last but one valid. temporal: 8:1:1 of all interactions by time. "
        "published: the rows that came with the dataset (with k_core 0).",
        "leave_one_out",
    )
    max_history: int = option("Items kept of a validation or test history, the latest ones.", 50)
    num_users: int | None = option("Keep a random sample of users of the k-core, and the items they have.", None)
    simulated_users: int = option("Users of the dataset 'simulated'.", 2000)
    simulated_items: int = option("Items of the dataset 'simulated'.", 500)


@dataclass(kw_only=True)
class EmbedConfig(StageConfig):
    """Turn items into vectors, one file per view."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    views: list[str] = option("Views to build: text, collaborative.", ["text", "collaborative"])
    text_encoder: str | None = option(
        "sentence-transformers model (Hub id or path), or 'tfidf' for TF-IDF with truncated SVD.", None
    )
    text_template: str = option("What is embedded, from the columns of items.parquet.", "{text}")
    text_dim: int = option("Dimension of TF-IDF vectors after SVD.", 128)
    collaborative_dim: int = option("Dimension of collaborative vectors.", 64)
    collaborative_window: int = option("Items on either side that count as co-occurring in a training sequence.", 5)
    batch_size: int = option("Texts per encoder batch.", 128, identity=False)
    device: str = option("Device of the text encoder: auto, cpu, cuda.", "auto", identity=False)


@dataclass(kw_only=True)
class TokenizeConfig(StageConfig):
    """Learn a semantic ID for every item from its views."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    views: str = option("Directory written by `llmrec embed`.")
    view_names: list[str] | None = option("Views to use; all of the directory when left out.", None)
    view_weights: list[float] | None = option(
        "Weight of each of `view_names`, after normalisation to unit length.", None
    )
    method: Literal["rq_kmeans"] = option("Item tokenizer.", "rq_kmeans")
    num_levels: int = option("Codes per item, before a collision suffix.", 3)
    codebook_size: int = option("Codes per level.", 256)
    iterations: int = option("k-means iterations per level.", 25)  # faiss default, as OneRec (2506.13695) uses it
    kmeans: Literal["torch", "faiss"] = option("k-means implementation; faiss needs the extra `kmeans`.", "torch")
    collision: Literal["suffix_ordinal", "sinkhorn_reassign", "accept"] = option(
        "How items with equal codes become distinct.", "suffix_ordinal"
    )
    device: str = option("Device of k-means: auto, cpu, cuda.", "auto", identity=False)


@dataclass(kw_only=True)
class ExtendConfig(StageConfig):
    """Add the semantic-ID tokens to a causal LLM and save it as the base of fine-tuning."""

    sid: str = option("Directory written by `llmrec tokenize`.")
    model: str = option("Hub id or path of a causal LLM, or 'micro' for a small new one with a word-level tokenizer.")
    catalog: str | None = option(
        "Directory written by `llmrec prepare`; 'micro' takes its vocabulary from the titles.", None
    )
    template: str = option("Token of a code; {letter} or {level}, and {code}.", "<{letter}_{code}>")
    spare_codes: int = option("Token rows per level kept free for codes of later items.", 0)
    dtype: Literal["auto", "float32", "bfloat16"] = option("Type of the saved weights.", "auto")
    micro_layers: int = option("Layers of 'micro'.", 2)
    micro_hidden: int = option("Hidden size of 'micro'.", 128)
    micro_dropout: float = option("Attention dropout of 'micro'.", 0.0)
    micro_words: int = option("Largest word vocabulary of 'micro'.", 8000)


@dataclass(kw_only=True)
class SftConfig(StageConfig):
    """Fine-tune the extended LLM on next-item prediction."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str = option("Directory written by `llmrec extend`.")
    instruction: str = option(
        "Text before the history.", "Recommend the next item for a user with this history, oldest first:"
    )
    chat_template: bool = option("Wrap the instruction in the tokenizer's chat template.", False)
    train: Literal["lora", "full"] = option("LoRA and semantic-ID rows, or all weights.", "lora")
    lora_rank: int = option("Rank of LoRA.", 16)
    lora_alpha: int = option("Scale of LoRA, divided by its rank.", 32)
    lora_dropout: float = option("Dropout on LoRA's input.", 0.05)
    lora_targets: list[str] = option("Module names that LoRA adapts.", ["all-linear"])
    quantization: Literal["none", "nf4"] = option("4-bit base weights by bitsandbytes (LoRA only).", "none")
    sid_loss: Literal["level", "full"] = option(
        "Softmax over the level's tokens, or over the whole vocabulary.", "level"
    )
    loss_on: Literal["every_item", "last_item"] = option("Items of a sequence that are targets.", "every_item")
    max_history: int = option("Items before a target; longer sequences are cut into overlapping windows.", 50)
    epochs: float = option("Passes over the training sequences.", 3.0)
    max_steps: int = option("Optimiser steps, instead of `epochs`, where positive.", -1)
    batch_size: int = option("Sequences per optimiser step, over all processes.", 64)
    micro_batch_size: int = option("Sequences per forward pass on one device.", 64, identity=False)
    learning_rate: float = option("Peak learning rate of LoRA, or of all weights.", 2e-4)
    sid_learning_rate: float | None = option("Peak learning rate of the semantic-ID rows under LoRA.", 1e-3)
    weight_decay: float = option("AdamW weight decay.", 0.01)
    warmup_steps: int = option("Optimiser steps of linear warm-up.", 20)
    scheduler: str = option("Learning-rate schedule, as transformers names it.", "cosine")
    label_smoothing: float = option("Label smoothing of the item loss.", 0.0)
    max_grad_norm: float = option("Gradient clipping.", 1.0)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto: bfloat16 on a GPU that has it.", "auto")
    gradient_checkpointing: bool = option("Trade compute for memory.", False, identity=False)
    save_steps: int = option("Optimiser steps between resumable checkpoints.", 200, identity=False)
    logging_steps: int = option("Optimiser steps between log lines.", 20, identity=False)
    report_to: list[str] = option("Trackers, as transformers names them.", [], identity=False)
    device: str = option("auto or cpu.", "auto", identity=False)


@dataclass(kw_only=True)
class EvaluateConfig(StageConfig):
    """Rank the whole catalogue for every held-out row, beside the baselines."""

    catalog: str = option("Directory written by `llmrec prepare`.")
    model: str = option("Checkpoint directory (of `llmrec sft` or `llmrec extend`).")
    split: Literal["valid", "test"] = option("Rows to evaluate.", "test")
    k: list[int] = option("Cut-offs.", [5, 10])
    num_beams: int | None = option("Beam width; min(items, max(50, 5k)) when left out.", None)
    baselines: list[str] = option(
        "Baselines in the same table: popularity, repeat, markov, item_knn.",
        ["popularity", "repeat", "markov", "item_knn"],
    )
    max_rows: int | None = option("Evaluate a random sample of rows.", None)
    batch_size: int = option("Rows decoded together on one device.", 64, identity=False)
    bootstrap_samples: int = option("Resamples of users for the 95 % intervals.", 1000)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto: bfloat16 on a GPU that has it.", "auto")
    device: str = option("Device of the model: auto, cpu, cuda.", "auto", identity=False)


@dataclass(kw_only=True)
class RecommendConfig:
    """Recommend items for histories given on the command line or in a file."""

    model: str = option("Checkpoint directory or Hub id.")
    history: list[str] | None = option("item_ids of one user, oldest first.", None)
    input: str | None = option(
        "JSON lines file: one {'history': [...], 'exclude': [...], 'allow': [...]} per user.", None
    )
    k: int = option("Items per user.", 10)
    exclude_seen: bool = option("Leave out items of the history.", True)
    catalog: str | None = option("Directory written by `llmrec prepare`, to print titles.", None)
    device: str = option("Device of the model: auto, cpu, cuda.", "auto")


@dataclass(kw_only=True)
class QuickstartConfig:
    """Run every stage on MovieTweetings (or the simulator) and print ours beside the baselines."""

    out: str = option("Directory of all stages.", "llmrec-quickstart")
    model: str = option(
        "Hub id or path of a causal LLM; 'micro' trains a small new one; 'auto' takes SmolLM2-135M on a GPU.", "auto"
    )
    dataset: str = option("Known dataset to run on.", "movietweetings")
    num_users: int | None = option("Keep a random sample of users.", None)
    epochs: float | None = option("Passes over the training sequences.", None)
    overwrite: bool = option("Start again.", False)
    seed: int = option("Seed of every stage.", 0)


STAGES: dict[str, type] = {
    "prepare": PrepareConfig,
    "embed": EmbedConfig,
    "tokenize": TokenizeConfig,
    "extend": ExtendConfig,
    "sft": SftConfig,
    "evaluate": EvaluateConfig,
    "recommend": RecommendConfig,
    "quickstart": QuickstartConfig,
}


def load_config(cls: type, path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Any:
    """Build a stage config from a flat YAML file and flags; flags win.

    Args:
        cls: One of the dataclasses above.
        path: YAML file whose keys are fields of `cls`.
        overrides: Field -> value; strings are parsed like YAML scalars.

    Raises:
        ValueError: With every problem at once: unknown keys (and the nearest valid one), wrong types, missing keys.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    given, origin = {}, {}
    for source, values in ((str(path), _read_yaml(path) if path else {}), ("the command line", overrides or {})):
        for key, value in values.items():
            given[key], origin[key] = value, source
    problems = []
    for key in list(given):
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(fields)}"
            problems.append(f"unknown key '{key}' in {origin[key]}{hint}")
            continue
        try:
            given[key] = _convert(given[key], hints[key])
        except ValueError as error:
            problems.append(f"'{key}' in {origin[key]} {error}")
    for name, f in fields.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"'{name}' is required: {f.metadata.get('help', '')}")
    if problems:
        raise ValueError("; ".join(problems))
    return cls(**given)


def _read_yaml(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"config file '{path}' does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file '{path}' is not UTF-8 (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config file '{path}' is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"config file '{path}' must map keys to values, not hold a {type(values).__name__}")
    return values


def _convert(value: Any, hint: Any) -> Any:
    """Value of a field from what YAML or a flag gave; no silent truncation (2.5 is no int, 'no' is no str list)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "null":
            return None
        return _convert(value, next(a for a in arguments if a is not types.NoneType))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"is {value!r}; choose from {', '.join(map(str, arguments))}")
        return value
    if origin is list:
        if isinstance(value, str):
            value = [part for part in value.replace(",", " ").split() if part]
        if not isinstance(value, list):
            raise ValueError(f"is {value!r}; a list is needed")
        return [_convert(part, arguments[0]) for part in value]
    if hint is bool:
        named = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in named:
            return named[value.lower()]
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}; true or false is needed")
        return value
    if hint in (int, float):
        try:
            if isinstance(value, bool) or (hint is int and float(value) != int(float(value))):
                raise ValueError
            return hint(float(value)) if hint is float else int(float(value))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"is {value!r}; {'an integer' if hint is int else 'a number'} is needed") from None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"is {value!r}; text is needed")
    return str(value)
