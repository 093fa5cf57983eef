"""Filters: what `prepare` keeps of a dataset, and how it joins a catalogue that is appended to."""
