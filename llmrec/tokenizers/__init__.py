"""Item tokenizers: one method per file, made of the parts in `shared`. docs/tokenizers.md says how to add one."""

from pathlib import Path

from llmrec.configs.options import suggestion
from llmrec.tokenizers.action_piece import ActionPiece
from llmrec.tokenizers.base import Encoded, ItemTokenizer, read_settings
from llmrec.tokenizers.cost import CoST
from llmrec.tokenizers.etegrec import ETEGRec
from llmrec.tokenizers.fixed import Atomic, Random, Sorted
from llmrec.tokenizers.fsq import FSQ
from llmrec.tokenizers.gaoq import GAOQ
from llmrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from llmrec.tokenizers.keywords import Keywords
from llmrec.tokenizers.letter import Letter
from llmrec.tokenizers.lm_indexer import LMIndexer
from llmrec.tokenizers.opq import OPQ
from llmrec.tokenizers.p5_cid import P5CID
from llmrec.tokenizers.rec_forest import RecForest
from llmrec.tokenizers.rq_kmeans import RQKMeans
from llmrec.tokenizers.rq_kmeans_plus import RQKMeansPlus
from llmrec.tokenizers.rq_vae import RQVAE
from llmrec.tokenizers.rvq import RVQ
from llmrec.tokenizers.simcit import SimCIT
from llmrec.tokenizers.titles import Titles
from llmrec.tokenizers.token_rec import TokenRec

TOKENIZERS: dict[str, type[ItemTokenizer]] = {
    "rq_kmeans": RQKMeans,
    "rq_kmeans_plus": RQKMeansPlus,
    "rvq": RVQ,
    "rq_vae": RQVAE,
    "cost": CoST,
    "letter": Letter,
    "simcit": SimCIT,
    "etegrec": ETEGRec,
    "opq": OPQ,
    "token_rec": TokenRec,
    "lm_indexer": LMIndexer,
    "action_piece": ActionPiece,
    "fsq": FSQ,
    "hierarchical_kmeans": HierarchicalKMeans,
    "rec_forest": RecForest,
    "gaoq": GAOQ,
    "p5_cid": P5CID,
    "titles": Titles,
    "keywords": Keywords,
    "atomic": Atomic,
    "random": Random,
    "sorted": Sorted,
}


def tokenizer_class(method: str) -> type[ItemTokenizer]:
    """Look up the class of a method.

    Args:
        method: A key of TOKENIZERS.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in TOKENIZERS:
        raise ValueError(f"unknown method '{method}'; {suggestion(method, TOKENIZERS)}")
    return TOKENIZERS[method]


def load_tokenizer(path: str | Path, device: str = "auto") -> ItemTokenizer:
    """Read the fitted tokenizer of any method from a directory that `llmrec tokenize` wrote.

    Args:
        path: Directory.
        device: Device that the tokenizer computes on: auto, cpu, cuda.

    Returns:
        A tokenizer that encodes as the saved one did.

    Raises:
        ValueError: If a file is absent or unreadable, the method is unknown, or the files do not go together.
    """
    return tokenizer_class(read_settings(path)["method"]).from_pretrained(path, device)


__all__ = ["TOKENIZERS", "Encoded", "ItemTokenizer", "load_tokenizer", "tokenizer_class"]
