"""quickstart: every stage on MovieTweetings in minutes on a CPU, and a comparison with SASRec and other rankers.

The LLM learns from the data and from two rankers, SASRec and ItemKNN, and is compared with them and others. Whether it
is ahead of SASRec is read off the paired intervals.

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
    TeachConfig,
    TokenizeConfig,
)
from llmrec.configs.evaluate import TRAINED
from llmrec.configs.recommend import RankBy
from llmrec.data.catalog import Catalog
from llmrec.data.known_datasets import known_source, locate
from llmrec.data.simulator import simulated_size
from llmrec.evaluation.protocol import COLUMNS
from llmrec.model.checkpoint import load_tokenizer
from llmrec.recommender import Recommender
from llmrec.runtime.console import say, table, tell
from llmrec.runtime.manifest import JsonObject, read_manifest
from llmrec.stages import embed, evaluate, extend, prepare, sft, teach, tokenize
from llmrec.stages.extend import MICRO
from llmrec.tokenizers.config import suited_codebook_size

SASREC = "sasrec"
SMALL_PRETRAINED = "HuggingFaceTB/SmolLM2-135M"
# Rankers that teach the LLM, with their options. SASRec has half its default size and a limit of epochs, to bound its
# time: on MovieTweetings its patience ended it there, and its best epoch was the 44th.
# Counts to the power of 2 are sharper probabilities: on valid, the mean of both teachers then ranks better.
TEACHERS: dict[str, JsonObject] = {SASREC: {"hidden": 64, "max_epochs": 64}, "item_knn": {"power": 2.0}}
DIRECTORIES = ("catalog", "views", "sid", *TEACHERS, "base", "checkpoint", "eval")
SHOWN_USERS = 3


def main(config: QuickstartConfig) -> JsonObject:
    """Run all stages from data to evaluation.

    Returns:
        `dataset`, `model`, `seconds` per stage, `metrics` as in metrics.json, `comparison` with SASRec in a sentence,
        and `examples` of recommendations.
    """
    dataset, data_note = choose_dataset(config.dataset)
    model, model_note = choose_model(config.model)
    say(f"llmrec quickstart: {data_note} {model_note} Everything is written to {config.out}/.")
    out = {name: str(Path(config.out) / name) for name in DIRECTORIES}
    metrics = run_stages(config, dataset, model, out)
    seconds = {name: read_manifest(path)["seconds"] for name, path in out.items()}
    examples = recommend_examples(out["catalog"], out["checkpoint"], rank_by(model))
    return {
        "out": config.out,
        "dataset": dataset,
        "model": model,
        "notes": f"{data_note} {model_note}",
        "seconds": seconds,
        "metrics": metrics,
        "comparison": verdict(metrics),
        "examples": examples,
    }


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
    catalog = out["catalog"]
    common: JsonObject = {"overwrite": config.overwrite, "seed": config.seed}
    prepare.main(PrepareConfig(out=catalog, dataset=dataset, num_users=config.num_users, **common))
    embed.main(EmbedConfig(out=out["views"], catalog=catalog, text_encoder="tfidf", **common))
    sid_options = tokenize_options(model, Catalog.load(catalog).num_items)
    tokenize.main(TokenizeConfig(out=out["sid"], catalog=catalog, views=out["views"], **sid_options, **common))
    for ranker, options in TEACHERS.items():
        search = None if ranker in TRAINED else False  # for ItemKNN it took 32 s and gained .0006 valid ndcg@10
        taught = TeachConfig(out=out[ranker], catalog=catalog, ranker=ranker, options=options, search=search, **common)
        teach.main(taught)
    item_rows = model == MICRO
    extend.main(
        ExtendConfig(out=out["base"], sid=out["sid"], catalog=catalog, model=model, item_rows=item_rows, **common)
    )
    sft.main(sft_config(config, model, out))
    baselines = ["popularity", "markov", "transition_graph", *(out[ranker] for ranker in TEACHERS)]
    return evaluate.main(
        EvaluateConfig(
            out=out["eval"],
            catalog=catalog,
            model=out["checkpoint"],
            rank=rank_by(model),
            baselines=baselines,
            **common,
        )
    )


def tokenize_options(model: str, num_items: int) -> JsonObject:
    """Options of `tokenize`: short semantic IDs for the micro model, which ranks by item rows and trains on a CPU."""
    if model == MICRO:
        options = {"num_levels": 2, "codebook_size": suited_codebook_size(num_items, 128)}
        return {"collision": "suffix_if_collided", "options": options}
    return {"options": {"codebook_size": suited_codebook_size(num_items, 64)}}


def sft_config(config: QuickstartConfig, model: str, out: dict[str, str]) -> SftConfig:
    """Options of `sft`; those of the micro model were chosen on validation (recipes/movietweetings-micro/README.md)."""
    result = SftConfig(
        out=out["checkpoint"], catalog=out["catalog"], model=out["base"], teacher=[out[each] for each in TEACHERS],
        overwrite=config.overwrite, seed=config.seed,
    )  # fmt: skip
    if model == MICRO:
        result = dataclasses.replace(
            result,
            instruction="Recommend the next item:",  # shorter than by default, since every sequence repeats it
            train="full",
            teacher_weight=0.8,
            teacher_temperature=0.5,
            learning_rate=2e-3,
            batch_size=32,
            micro_batch_size=32,
            epochs=12.0,
            dropout=0.2,
            label_smoothing=0.1,
            item_dropout=0.3,
            item_decay=1.0,
        )
    else:
        result = dataclasses.replace(result, train="lora", batch_size=64, epochs=3.0)
    return result if config.epochs is None else dataclasses.replace(result, epochs=config.epochs)


def rank_by(model: str) -> RankBy:
    """Choose how the model ranks: the micro one by its item rows in one pass, others by their SIDs."""
    return "items" if model == MICRO else "sid"


def verdict(metrics: JsonObject) -> str:
    """Say in one sentence where the LLM is ahead of SASRec, by the paired intervals of metrics.json."""
    entries = [entry for column in COLUMNS for entry in metrics["differences"][SASREC][column].values()]
    ahead = sum(entry["low"] > 0 for entry in entries)
    behind = sum(entry["high"] < 0 for entry in entries)
    figures = f"{len(entries)} figures (recall and ndcg, with and without seen items)"
    if ahead == len(entries):
        return f"The LLM is ahead of SASRec in all {figures}: every paired 95 % interval lies above 0."
    return f"By paired 95 % intervals, the LLM is ahead of SASRec in {ahead} and behind it in {behind} of {figures}."


def recommend_examples(catalog_dir: str, checkpoint: str, rank: RankBy) -> list[JsonObject]:
    """Recommend for a few test users: titles of the latest history, of the recommendations and of the next item."""
    catalog = Catalog.load(catalog_dir)
    test = catalog.examples("test")
    histories = catalog.histories("test")[:SHOWN_USERS]
    answers, _ = Recommender.from_pretrained(checkpoint, rank=rank).recommend(histories, k=5)
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


def show(result: JsonObject) -> None:
    """Print the result of `main`."""
    tell(result["comparison"])
    evaluate.show(result["metrics"])
    seconds = [*result["seconds"].items(), ("all", round(sum(result["seconds"].values()), 1))]
    table("Seconds per stage", ("directory", "seconds"), seconds)
    for example in result["examples"]:
        rows = zip(example["history"] + [""] * 5, example["recommended"], strict=False)
        table(f"user {example['user_id']} (went on to: {example['next']})", ("latest history", "recommended"), rows)
    tell(f"Done: {result['notes']}")
