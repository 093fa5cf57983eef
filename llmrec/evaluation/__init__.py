"""Honest evaluation: item-level metrics, baselines of the same command, intervals over users."""
