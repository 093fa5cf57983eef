"""ActionPiece: features of items, and pieces of them learned from histories."""
