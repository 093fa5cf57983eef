"""The YAML at the head of a model card, which the Hub reads: library, base model, licence, tags, measured results.

Results are a model-index: one entry per split, whose metrics say in words what was ranked and whether seen items were
excluded, since the names recall@10 and ndcg@10 alone do not.
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from llmrec.runtime.manifest import JsonObject
from llmrec.runtime.reading import reading

TAGS = ("llmrec", "recommendation", "semantic-ids")
OURS = "ours"
RANKING = ("recall@", "ndcg@", "mrr@")  # of a ranking's accuracy; the table in the card has the others too
SEEN = {"plain": "seen items included", "seen_excluded": "seen items excluded"}


def front_matter(
    name: str, details: JsonObject, num_items: int, metrics: JsonObject | None, license: str | None
) -> str:
    """Write the block of YAML between its two lines of hyphens.

    Args:
        name: Name of the model, for its results.
        details: Facts in llmrec.json.
        num_items: Number of items that were ranked.
        metrics: Content of metrics.json of `llmrec evaluate`, if the model was evaluated.
        license: Id of a licence, as the Hub spells it; none is claimed when left out.
    """
    base = details.get("base_model", "")
    data = ModelCardData(
        library_name="llmrec",
        pipeline_tag="text-generation",
        base_model=base if base.count("/") == 1 else None,  # a name without an owner may be that of a directory
        license=license,
        tags=list(TAGS),
        model_name=name,
        eval_results=None if metrics is None else results(metrics, details.get("data", {}), num_items),
    )
    return f"---\n{data.to_yaml()}\n---"


def results(metrics: JsonObject, data: JsonObject, num_items: int) -> list[EvalResult]:
    """List the accuracy of the model itself, of both columns.

    Args:
        metrics: Content of metrics.json.
        data: Description of the data in llmrec.json.
        num_items: Number of items that were ranked.
    """
    dataset = data.get("dataset")
    filters = [f"{data[key]}{unit}" for key, unit in (("k_core", "-core"), ("split", " split")) if key in data]
    return [
        EvalResult(
            task_type="recommendation",
            task_name="Next-item recommendation",
            dataset_type=dataset or "unknown",
            dataset_name=", ".join([dataset or "data of its owner", *filters]).replace("_", " "),
            dataset_split=metrics["split"],
            metric_type=metric,
            metric_name=f"{metric}, full ranking of {num_items} items, {SEEN[column]}",
            metric_value=round(value, 4),
        )
        for column, values in metrics["systems"].get(OURS, {}).items()
        for metric, value in values.items()
        if metric.startswith(RANKING) and isinstance(value, float)
    ]


def read_metrics(path: str | Path) -> JsonObject:
    """Read metrics.json of `llmrec evaluate`.

    Raises:
        ValueError: If it is absent or something else.
    """
    path = Path(path)
    with reading(path, "metrics.json of `llmrec evaluate`", "give the file that `llmrec evaluate` wrote"):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        metrics["systems"], metrics["split"], metrics["num_beams"]
    return metrics
