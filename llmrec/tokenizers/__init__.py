"""Item tokenizers: one paper per file, over the mathematics of residual.py."""

from llmrec.tokenizers.base import Encoded, ItemTokenizer
from llmrec.tokenizers.rq_kmeans import RQKMeans

TOKENIZERS: dict[str, type[ItemTokenizer]] = {"rq_kmeans": RQKMeans}

__all__ = ["TOKENIZERS", "Encoded", "ItemTokenizer", "RQKMeans"]
