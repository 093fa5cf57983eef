"""Intake: users' own files as they are, read into a Dataset."""
