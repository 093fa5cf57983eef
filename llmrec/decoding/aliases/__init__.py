"""Ranking by several semantic IDs of each item."""
