"""Ranking by a text that the LLM writes freely: the nearest items of the catalogue."""
