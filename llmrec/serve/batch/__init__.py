"""Batches of users in tables: the unit of work of `llmrec recommend --users`, of Ray Data and of Spark."""
