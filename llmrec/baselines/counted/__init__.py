"""Baselines that are counted in seconds and often hard to beat: popularity, repeat, Markov, ItemKNN, transition graph.

They read training sequences only (`Catalog.train`). Each scores some of the items; popularity fills the remaining
places, so that every baseline ranks the whole catalogue. Equal scores are ordered by popularity and then by item row.
Items are shuffled when the catalogue is prepared, so their order says nothing about the target. Each place is a tie
group of its own.
"""

from llmrec.baselines.counted.item_knn import ItemKNN
from llmrec.baselines.counted.markov import Markov
from llmrec.baselines.counted.popularity import BATCH, Popularity
from llmrec.baselines.counted.repeat import Repeat
from llmrec.baselines.counted.transition_graph import TransitionGraph

COUNTED_BASELINES: dict[str, type[Popularity]] = {
    ranker.name: ranker for ranker in (Popularity, Repeat, Markov, ItemKNN, TransitionGraph)
}

__all__ = ["BATCH", "COUNTED_BASELINES", "ItemKNN", "Markov", "Popularity", "Repeat", "TransitionGraph"]
