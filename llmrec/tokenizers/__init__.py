"""Item tokenizers: one paper per file, over the mathematics of residual.py."""

from pathlib import Path

from llmrec.configs.options import suggestion
from llmrec.tokenizers.base import Encoded, ItemTokenizer, read_settings
from llmrec.tokenizers.cost import CoST
from llmrec.tokenizers.etegrec import ETEGRec
from llmrec.tokenizers.fixed import Atomic, Random, Sorted
from llmrec.tokenizers.fsq import FSQ
from llmrec.tokenizers.gaoq import GAOQ
from llmrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from llmrec.tokenizers.letter import Letter
from llmrec.tokenizers.opq import OPQ
from llmrec.tokenizers.p5_cid import P5CID
from llmrec.tokenizers.rq_kmeans import RQKMeans
from llmrec.tokenizers.rq_kmeans_plus import RQKMeansPlus
from llmrec.tokenizers.rq_vae import RQVAE
from llmrec.tokenizers.rvq import RVQ
from llmrec.tokenizers.simcit import SimCIT

METHODS = (
    RQKMeans, RQKMeansPlus, RVQ, RQVAE, CoST, Letter, SimCIT, ETEGRec, OPQ, FSQ, HierarchicalKMeans, GAOQ, P5CID,
    Atomic, Random, Sorted,
)  # fmt: skip
TOKENIZERS: dict[str, type[ItemTokenizer]] = {tokenizer.method: tokenizer for tokenizer in METHODS}


def tokenizer_class(method: str) -> type[ItemTokenizer]:
    """Class of a method.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in TOKENIZERS:
        raise ValueError(f"unknown method '{method}'; {suggestion(method, TOKENIZERS)}")
    return TOKENIZERS[method]


def load_tokenizer(path: str | Path, device: str = "auto") -> ItemTokenizer:
    """Read the fitted tokenizer of any method from what `llmrec tokenize` wrote.

    Raises:
        ValueError: If there is no whole tokenizer.
    """
    return tokenizer_class(read_settings(path)["method"]).from_pretrained(path, device)


__all__ = [
    "FSQ", "GAOQ", "OPQ", "P5CID", "RQVAE", "RVQ", "TOKENIZERS", "Atomic", "CoST", "ETEGRec", "Encoded",
    "HierarchicalKMeans", "ItemTokenizer", "Letter", "RQKMeans", "RQKMeansPlus", "Random", "SimCIT", "Sorted",
    "load_tokenizer", "tokenizer_class",
]  # fmt: skip
