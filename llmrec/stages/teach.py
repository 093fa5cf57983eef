"""teach: fit a classical ranker to the training sequences once, measure it on valid, and keep it.

`llmrec evaluate --baselines DIR` compares with it, a mixture mixes it, and `llmrec sft` learns from it. Test examples
are never read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path

import numpy as np
import torch

from llmrec.baselines.checks import check_trainable
from llmrec.baselines.config import with_defaults
from llmrec.baselines.counted import COUNTED_BASELINES, Popularity
from llmrec.baselines.counted.fitted import fitted
from llmrec.baselines.mixture import Mixture
from llmrec.baselines.mixture_search import best_mixture
from llmrec.baselines.networks import TAUGHT_NETWORKS, NeuralRanker
from llmrec.baselines.scores import Scores, read_scores
from llmrec.baselines.taught import RANKER, Ranker, Taught, load_ranker
from llmrec.configs import TeachConfig
from llmrec.configs.teach import CCFREC, MIXTURE, SCORES
from llmrec.data.catalog import Catalog
from llmrec.data.examples import Examples
from llmrec.evaluation.metrics import ndcg, recall, target_position
from llmrec.evaluation.protocol import COLUMNS
from llmrec.runtime import processes
from llmrec.runtime.console import table, tell
from llmrec.runtime.device import resolve_device
from llmrec.runtime.manifest import JsonObject, content_hash, verify
from llmrec.runtime.stage_directory import run_stage
from llmrec.sid.table import EMPTY, SidTable
from llmrec.tokenizers.opq import whitening
from llmrec.views import ItemViews, view_files

CUTOFF = 10
PLAIN, SEEN_EXCLUDED = COLUMNS


def main(config: TeachConfig) -> JsonObject:
    """Fit the ranker, or mix those that were fitted, and print how it ranks the valid examples.

    Returns:
        out and the content of ranker.json.

    Raises:
        ValueError: If the options do not go together, there is nothing to learn from or nothing to choose by, or an
            input is unfinished or of another catalogue.
    """
    config = with_defaults(config)
    device, catalog = resolve_device(config.device), Catalog.load(config.catalog)
    valid = catalog.examples("valid")
    if config.ranker in TAUGHT_NETWORKS:
        check_trainable(config.ranker, catalog)
    elif len(valid) == 0:
        raise ValueError(
            f"{catalog.source}/split.parquet has no 'valid' examples, by which teach measures a ranker and chooses "
            "whether seen items are excluded. Run `llmrec prepare` with more users or a smaller k_core."
        )
    check_members(config)
    members = [load_ranker(path, catalog, device) for path in config.members or ()]
    scores = read_scores(config.scores, catalog) if config.scores else None
    read = features(config, catalog)

    def build(workdir: Path) -> JsonObject:
        # Every process fits a ranker: the others would wait for a network of the first one longer than they may.
        if not processes.is_main() and config.ranker in (MIXTURE, SCORES):
            return {}
        started = time.monotonic()
        facts: JsonObject = {}
        ranker: Ranker
        if config.ranker == MIXTURE:
            ranker, facts["mixture"] = mixture(config, members, valid)
        elif config.ranker == SCORES:
            ranker = Scores(catalog, device, scores, **config.options)
        else:
            ranker = fit(config, catalog, device, read)
        facts["seconds"] = round(time.monotonic() - started, 1)
        if processes.is_main():
            kept = measured(Taught(ranker, device, facts=facts), valid)
            kept.save(workdir, catalog)
        return {"num_items": catalog.num_items, "num_examples": len(valid)}

    inputs: dict[str, str | Path] = {"catalog": config.catalog}
    inputs |= {f"member {i}": path for i, path in enumerate(config.members or (), start=1)}
    inputs |= {name: path for name in ("scores", "sid", "views") if (path := getattr(config, name)) is not None}
    out = run_stage("teach", config, inputs, build)
    result = json.loads((out / RANKER).read_text(encoding="utf-8"))
    return {"out": str(out), **result}


def fit(config: TeachConfig, catalog: Catalog, device: torch.device, read: JsonObject) -> Popularity | NeuralRanker:
    """Fit a counted ranker, whose options valid may choose, or train a network.

    Args:
        config: Options of the stage.
        catalog: Catalogue to fit to.
        device: Device of the ranker.
        read: Result of `features`.
    """
    options: JsonObject = config.options
    if config.ranker in TAUGHT_NETWORKS:
        return NeuralRanker(TAUGHT_NETWORKS[config.ranker], catalog, config.seed, device, **read, **options)
    build = functools.partial(COUNTED_BASELINES[config.ranker], catalog, device, **read)
    return fitted(build, catalog, config.seed, **options) if config.search else build(**options)


def features(config: TeachConfig, catalog: Catalog) -> JsonObject:
    """Read what a ranker reads of items beside the catalogue, as its keyword argument `features`; nothing for most.

    Raises:
        ValueError: If views or semantic IDs are absent, unreadable or of another catalogue.
    """
    if config.ranker == CCFREC:
        return {"features": codes_and_texts(config, catalog)}
    return {"features": joint_features(config, catalog)} if config.views else {}


def codes_and_texts(config: TeachConfig, catalog: Catalog) -> dict[str, torch.Tensor]:
    """Codes of the items, and the vectors of their texts, whitened to the hidden size (PCA), as CCFRec has them.

    Raises:
        ValueError: If views or semantic IDs are absent, unreadable or of another catalogue, or a SID is not of one code
            at each level.
    """
    assert config.sid is not None
    table = SidTable.load(verify(config.sid, "tokenize"))
    if table.item_ids != catalog.item_ids:
        raise ValueError(
            f"'{config.sid}' has semantic IDs of other items than '{config.catalog}', or in another order; run `llmrec "
            "tokenize` on this catalogue."
        )
    codes = table.codes(range(table.num_items))
    has_one_code_each = table.sids_per_item is None and table.words is None and table.pieces is None
    if (codes == EMPTY).any() or not has_one_code_each:
        raise ValueError(
            f"ccfrec makes an item of one code at each level, and '{config.sid}' has items with several semantic IDs, "
            "shorter ones, words or pieces; run `llmrec tokenize --method opq --num-levels 20 --collision accept`."
        )
    views = ItemViews.load(config.views, catalog, config.view_names) if config.views else {}
    hidden = int(str(config.options["hidden"]))
    texts = torch.zeros(len(views), catalog.num_items, hidden)
    for text_ND, view in zip(texts, views.values(), strict=True):
        known_nD = torch.from_numpy(view.vectors[~view.missing])
        mean_D, into_DE, _ = whitening(known_nD, hidden)
        text_ND[torch.from_numpy(~view.missing), : into_DE.shape[1]] = (known_nD - mean_D) @ into_DE
    sizes = torch.tensor(table.level_sizes)
    return {"codes": torch.from_numpy(codes), "level_sizes": sizes, "texts": texts}


def check_members(config: TeachConfig) -> None:
    """Refuse members of which two are the same.

    Raises:
        ValueError: If two are.
    """
    found: dict[str, str] = {}
    for path in config.members or ():
        content = content_hash(path)
        if content in found:
            raise ValueError(f"members '{found[content]}' and '{path}' are the same; each counts once.")
        found[content] = path


def joint_features(config: TeachConfig, catalog: Catalog) -> np.ndarray:
    """(N, D) vectors of the views side by side, each of unit length or zero.

    Raises:
        ValueError: If a view is absent, unreadable or of another catalogue.
    """
    assert config.views is not None
    view_files(config.views, config.view_names)
    parts = []
    for view in ItemViews.load(config.views, catalog, config.view_names).values():
        length = np.linalg.norm(view.vectors, axis=1, keepdims=True)
        parts.append(view.vectors / np.maximum(length, np.finfo(np.float32).tiny))
    return np.concatenate(parts, axis=1)


def mixture(config: TeachConfig, members: list[Taught], valid: Examples) -> tuple[Mixture, list[JsonObject]]:
    """Choose a mixture.

    Returns:
        The mixture; and the directory, ranker, weight and options of each member.
    """
    found, _ = best_mixture(members, valid, config.seed)
    facts: list[JsonObject] = []
    for path, member, weight in zip(config.members or (), found.members, found.weights, strict=True):
        assert isinstance(member, Taught)
        power = getattr(member.ranker.chosen, "power", None)
        facts.append({"member": path, "ranker": member.ranker.name, "weight": round(weight, 6), "power": power})
    return found, facts


def measured(kept: Taught, valid: Examples) -> Taught:
    """The same ranker with its figures on valid, by which it excludes seen items or not."""
    found = {column: figures(kept, valid, column == SEEN_EXCLUDED) for column in COLUMNS}
    exclude_seen = found[SEEN_EXCLUDED][f"ndcg@{CUTOFF}"] >= found[PLAIN][f"ndcg@{CUTOFF}"]
    facts = {"valid": found, **kept.facts, "log": [epoch._asdict() for epoch in kept.ranker.log]}
    return dataclasses.replace(kept, exclude_seen=exclude_seen, facts=facts)


def figures(ranker: Taught, examples: Examples, exclude_seen: bool) -> dict[str, float]:
    """Recall and ndcg of examples in one column; a target that is excluded is a miss."""
    histories = [examples.history(i) for i in range(len(examples))]
    ranking = ranker.rank(histories, CUTOFF, histories if exclude_seen else None)
    position = target_position(ranking, examples.targets)
    return {
        f"{metric.__name__}@{CUTOFF}": round(float(metric(position, CUTOFF).mean()), 6) for metric in (recall, ndcg)
    }


def show(result: JsonObject) -> None:
    """Print how a ranker ranks the valid examples, and what a mixture is made of."""
    names = list(result["valid"][PLAIN])
    header = ["column", *names]
    rows = [[column, *(result["valid"][column][name] for name in names)] for column in COLUMNS]
    epochs = f", {len(result['log'])} epochs" if result["log"] else ""
    table(f"{result['ranker']} on valid ({result['seconds']} s{epochs})", header, rows)
    if "mixture" in result:
        parts = [[part["member"], part["ranker"], part["weight"], part["power"] or ""] for part in result["mixture"]]
        table("mixture", ["member", "ranker", "weight", "power"], parts)
    tell(f"As a teacher it {'leaves out' if result['exclude_seen'] else 'keeps'} seen items, as valid has it.")
