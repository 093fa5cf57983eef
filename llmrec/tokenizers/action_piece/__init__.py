"""ActionPiece: the tokenizer, and the merges that it learns from histories."""

from llmrec.tokenizers.action_piece.tokenizer import ActionPiece

__all__ = ["ActionPiece"]
