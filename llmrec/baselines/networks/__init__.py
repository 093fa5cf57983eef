"""Baselines that are trained for minutes by one trainer, one paper per file."""

from llmrec.baselines.networks.bert4rec import BERT4Rec
from llmrec.baselines.networks.ccfrec import CCFRec
from llmrec.baselines.networks.gru4rec import GRU4Rec
from llmrec.baselines.networks.network import Network
from llmrec.baselines.networks.ranker import NeuralRanker
from llmrec.baselines.networks.sasrec import SASRec
from llmrec.baselines.networks.sasrec_fields import SASRecFields
from llmrec.baselines.networks.training_options import TrainingOptions

NETWORKS: dict[str, type[Network]] = {network.name: network for network in (SASRec, GRU4Rec, SASRecFields, BERT4Rec)}
# Also those that read more than a catalogue, and are trained by `llmrec teach` alone.
TAUGHT_NETWORKS: dict[str, type[Network]] = {**NETWORKS, CCFRec.name: CCFRec}

__all__ = [
    "NETWORKS",
    "TAUGHT_NETWORKS",
    "BERT4Rec",
    "CCFRec",
    "GRU4Rec",
    "Network",
    "NeuralRanker",
    "SASRec",
    "SASRecFields",
    "TrainingOptions",
]
