"""Pieces of item features, and how a history is written in them."""
