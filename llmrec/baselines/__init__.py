"""Baselines that are trained for minutes: one paper per file, over one trainer and one exact ranker."""

from llmrec.baselines.bert4rec import BERT4Rec
from llmrec.baselines.gru4rec import GRU4Rec
from llmrec.baselines.network import Network
from llmrec.baselines.ranker import NeuralRanker
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sasrec_fields import SASRecFields
from llmrec.baselines.trainer import Epoch
from llmrec.baselines.training_options import TrainingOptions

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
