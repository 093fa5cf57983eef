"""Baselines that are trained for minutes: one paper per file, over one trainer and one exact ranker."""

from llmrec.evaluation.neural.bert4rec import BERT4Rec
from llmrec.evaluation.neural.gru4rec import GRU4Rec
from llmrec.evaluation.neural.network import Network
from llmrec.evaluation.neural.ranker import NeuralRanker
from llmrec.evaluation.neural.sasrec import SASRec
from llmrec.evaluation.neural.sasrec_fields import SASRecFields
from llmrec.evaluation.neural.trainer import Epoch, Training

NETWORKS: dict[str, type[Network]] = {network.name: network for network in (SASRec, GRU4Rec, SASRecFields, BERT4Rec)}

__all__ = ["NETWORKS", "BERT4Rec", "Epoch", "GRU4Rec", "Network", "NeuralRanker", "SASRec", "SASRecFields", "Training"]
