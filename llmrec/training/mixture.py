"""The mixture weight of a model with item rows, chosen on validation examples when its training ends.

SIDs and items are ranked once in each column, and mixed with every weight of the grid that `llmrec ensemble` uses; the
weight with the largest mean of both columns' ndcg is saved. The step of the weights was chosen before, by SIDs alone.
"""

from __future__ import annotations

from accelerate import Accelerator

from llmrec.configs.recommend import RankBy
from llmrec.evaluation.ensemble.fusion import Fusion, Weighted
from llmrec.evaluation.ensemble.search import best, search
from llmrec.evaluation.ensemble.shortlist import shortlist
from llmrec.evaluation.learning import CUTOFF
from llmrec.evaluation.protocol import COLUMNS
from llmrec.evaluation.ranking import default_num_beams
from llmrec.model.backbone import evaluation_mode
from llmrec.runtime.console import say
from llmrec.runtime.manifest import JsonObject
from llmrec.training.validation import Validation

MEMBERS: tuple[RankBy, RankBy] = ("sid", "items")
WAY = "probabilities"


def choose_mixture(validation: Validation, accelerator: Accelerator) -> JsonObject:
    """Choose the share of the item rows by the validation examples.

    Args:
        validation: Validation of a training that has ended, with the weights that will be saved.
        accelerator: Accelerator of the trainer, for the precision of training.

    Returns:
        `mixture_weight`, and the valid ndcg of SIDs, items and the mixture, as mean of both columns.
    """
    examples, model = validation.examples, validation.ranker.model
    depth = default_num_beams(validation.table.num_items, [CUTOFF])
    with evaluation_mode(model), accelerator.autocast():
        fusions = {
            column: Fusion(
                [
                    shortlist(
                        validation.ranker_by(rank).rank_batches, examples, depth, column, validation.batch_size,
                        f"{validation.stage}: {rank}, {column}",
                    )
                    for rank in MEMBERS
                ],
                examples.targets,
            )
            for column in COLUMNS
        }  # fmt: skip
    found = search(fusions, [WAY], len(MEMBERS), CUTOFF)
    chosen = best(found)
    by_weights = {one.mixture.weights: one.value for one in found if isinstance(one.mixture, Weighted)}
    assert isinstance(chosen.mixture, Weighted)
    weight = chosen.mixture.weights[1]
    ndcg = {"sid": by_weights[1.0, 0.0], "items": by_weights[0.0, 1.0], "mixture": chosen.value}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in ndcg.items())
    say(f"{validation.stage}: mixture weight {weight:g} by valid ndcg@{CUTOFF}, mean of both columns: {shown}")
    return {"mixture_weight": weight, f"valid_ndcg@{CUTOFF}_by_rank": ndcg}
