"""Checkpoints in the formats of other programs, and those of other projects in ours."""
