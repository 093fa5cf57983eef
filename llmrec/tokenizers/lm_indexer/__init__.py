"""LMIndexer: the tokenizer, and the parts that it alone uses."""

from llmrec.tokenizers.lm_indexer.tokenizer import LMIndexer

__all__ = ["LMIndexer"]
