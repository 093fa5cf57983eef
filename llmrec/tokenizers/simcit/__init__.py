"""SimCIT: the tokenizer, and the parts that it alone uses."""

from llmrec.tokenizers.simcit.tokenizer import SimCIT

__all__ = ["SimCIT"]
