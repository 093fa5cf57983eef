"""Serve: everything after `Recommender`, for a service that runs for months. Nothing here is imported by `llmrec`."""
