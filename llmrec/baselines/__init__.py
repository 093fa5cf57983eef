"""Baselines: counted in seconds, or trained for minutes by one trainer, one paper per file; all rank exactly."""

from llmrec.baselines.bert4rec import BERT4Rec
from llmrec.baselines.gru4rec import GRU4Rec
from llmrec.baselines.network import Network
from llmrec.baselines.ranker import NeuralRanker
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sasrec_fields import SASRecFields
from llmrec.baselines.training_options import TrainingOptions
from llmrec.evaluation.learning import Epoch

NETWORKS: dict[str, type[Network]] = {network.name: network for network in (SASRec, GRU4Rec, SASRecFields, BERT4Rec)}

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
