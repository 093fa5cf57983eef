"""Honest evaluation: item-level metrics, the same protocol for every ranker, intervals over users."""
