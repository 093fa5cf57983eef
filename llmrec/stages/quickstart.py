"""quickstart: every stage on MovieTweetings in minutes on a CPU, and a comparison with the baselines.

Each stage is the ordinary one on its own directory, so an interrupted run continues where it stopped and every
directory can be used afterwards. Without local data and network it runs on the simulator, and says so first and last.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from llmrec.configs import (
    EmbedConfig,
    EvaluateConfig,
    ExtendConfig,
    PrepareConfig,
    QuickstartConfig,
    SftConfig,
    TokenizeConfig,
)
from llmrec.data.catalog import Catalog
from llmrec.data.known_datasets import known_source, locate
from llmrec.data.simulator import simulated_size
from llmrec.model.checkpoint import load_tokenizer
from llmrec.recommender import Recommender
from llmrec.runtime.console import say, table
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.stages import embed, evaluate, extend, prepare, sft, tokenize
from llmrec.stages.extend import MICRO

SMALL_PRETRAINED = "HuggingFaceTB/SmolLM2-135M"
LARGEST_CODEBOOK = 64  # 2,414 items in three levels: 64 codes leave few collisions and are learned in minutes
SHOWN_USERS = 3


def main(config: QuickstartConfig) -> JsonObject:
    """Run all stages from data to evaluation.

    Returns:
        `dataset`, `model`, `seconds` per stage, `metrics` as in metrics.json, and `examples` of recommendations.
    """
    dataset, data_note = choose_dataset(config.dataset)
    model, model_note = choose_model(config.model)
    say(f"llmrec quickstart: {data_note} {model_note} Everything is written to {config.out}/.")
    out = {name: str(Path(config.out) / name) for name in ("catalog", "views", "sid", "base", "checkpoint", "eval")}
    metrics = run_stages(config, dataset, model, out)
    seconds = {name: read_manifest(path)["seconds"] for name, path in out.items()}
    table("Seconds per stage", ("directory", "seconds"), [*seconds.items(), ("all", round(sum(seconds.values()), 1))])
    examples = recommend_examples(out["catalog"], out["checkpoint"])
    show(examples)
    say(f"Done: {data_note} {model_note} Next: llmrec recommend --model {out['checkpoint']} --catalog {out['catalog']}")
    return {"dataset": dataset, "model": model, "seconds": seconds, "metrics": metrics, "examples": examples}


def choose_dataset(name: str) -> tuple[str, str]:
    """Choose the dataset to run on: the one asked for, or the simulator where MovieTweetings cannot be had.

    Returns:
        Name of the dataset, and a sentence about it.
    """
    if simulated_size(name):
        return name, "The data is simulated."
    try:
        locate(known_source(name))
    except ValueError as error:
        if name != QuickstartConfig.dataset:
            raise
        say(str(error))
        return "simulated", f"The data is SIMULATED, because {name} is neither on this machine nor reachable."
    return name, f"The data is {name}."


def choose_model(name: str) -> tuple[str, str]:
    """Choose the model to extend; 'auto' is a pretrained one if there is a GPU and the Hub is reachable, else 'micro'.

    Returns:
        Hub id, path or 'micro', and a sentence about it.
    """
    micro = "The model is a micro one made here, with a word-level tokenizer over the titles, trained in full"
    if name == MICRO:
        return MICRO, f"{micro}."
    if name != "auto":
        return name, f"The model is {name}, fine-tuned with LoRA."
    if not torch.cuda.is_available():
        return MICRO, f"{micro}, because there is no GPU."
    try:
        load_tokenizer(SMALL_PRETRAINED)
    except ValueError:
        return MICRO, f"{micro}, because {SMALL_PRETRAINED} is not reachable."
    return SMALL_PRETRAINED, f"The model is {SMALL_PRETRAINED}, fine-tuned with LoRA."


def run_stages(config: QuickstartConfig, dataset: str, model: str, out: dict[str, str]) -> JsonObject:
    """Run every stage on its own directory.

    Returns:
        The content of metrics.json.
    """
    catalog, overwrite, seed = out["catalog"], config.overwrite, config.seed
    prepare.main(
        PrepareConfig(out=catalog, dataset=dataset, num_users=config.num_users, overwrite=overwrite, seed=seed)
    )
    embed.main(EmbedConfig(out=out["views"], catalog=catalog, text_encoder="tfidf", overwrite=overwrite, seed=seed))
    options: dict[str, object] = {"codebook_size": codebook_size(Catalog.load(catalog).num_items)}
    tokenize.main(
        TokenizeConfig(
            out=out["sid"], catalog=catalog, views=out["views"], options=options, overwrite=overwrite, seed=seed
        )
    )
    extend.main(
        ExtendConfig(out=out["base"], sid=out["sid"], catalog=catalog, model=model, overwrite=overwrite, seed=seed)
    )
    sft.main(sft_config(config, model, out))
    return evaluate.main(
        EvaluateConfig(out=out["eval"], catalog=catalog, model=out["checkpoint"], overwrite=overwrite, seed=seed)
    )


def sft_config(config: QuickstartConfig, model: str, out: dict[str, str]) -> SftConfig:
    """Options of `sft`; those of the micro model were chosen on validation (recipes/movietweetings-micro/README.md)."""
    result = SftConfig(
        out=out["checkpoint"], catalog=out["catalog"], model=out["base"], overwrite=config.overwrite, seed=config.seed
    )
    if model == MICRO:
        result = dataclasses.replace(
            result,
            train="full",
            learning_rate=2e-3,
            batch_size=32,
            micro_batch_size=32,
            epochs=5.0,
            label_smoothing=0.1,
        )
    else:
        result = dataclasses.replace(result, train="lora", batch_size=64, epochs=3.0)
    return result if config.epochs is None else dataclasses.replace(result, epochs=config.epochs)


def codebook_size(num_items: int) -> int:
    """Largest power of two that gives a code sixteen items on average, at most 64 and at least 4."""
    return max(4, min(LARGEST_CODEBOOK, 1 << max(0, (num_items // 16).bit_length() - 1)))


def recommend_examples(catalog_dir: str, checkpoint: str) -> list[JsonObject]:
    """Recommend for a few test users: titles of the latest history, of the recommendations and of the next item."""
    catalog = Catalog.load(catalog_dir)
    test = catalog.examples("test")
    histories = catalog.histories("test")[:SHOWN_USERS]
    answers, _ = Recommender.from_pretrained(checkpoint).recommend(histories, k=5)
    title = dict(zip(catalog.item_ids, catalog.titles, strict=True))
    return [
        {
            "user_id": user_id,
            "history": [title[item_id] for item_id in history[-5:]],
            "recommended": [title[item_id] for item_id in answer],
            "next": catalog.titles[target],
        }
        for user_id, history, answer, target in zip(test.user_ids, histories, answers, test.targets, strict=False)
    ]


def show(examples: list[JsonObject]) -> None:
    """Print the recommendations of each user as a table."""
    for example in examples:
        rows = zip(example["history"] + [""] * 5, example["recommended"], strict=False)
        table(f"user {example['user_id']} (went on to: {example['next']})", ("latest history", "recommended"), rows)
