"""Fuzzing: random inputs, most of them one mutation of a valid one, and judges that know what may come of them.

`python -m tests.faults.fuzz files --first 0 --count 1000` runs by hand; docs/reliability.md has the counts so far.
"""
