"""Baselines: counted in seconds (`counted/`), or trained for minutes by one trainer (`networks/`); all rank exactly."""

from llmrec.baselines.networks import (
    NETWORKS,
    BERT4Rec,
    GRU4Rec,
    Network,
    NeuralRanker,
    SASRec,
    SASRecFields,
    TrainingOptions,
)
from llmrec.evaluation.learning import Epoch

__all__ = [
    "NETWORKS",
    "BERT4Rec",
    "Epoch",
    "GRU4Rec",
    "Network",
    "NeuralRanker",
    "SASRec",
    "SASRecFields",
    "TrainingOptions",
]
