"""Ensembles: the first items of several rankers, ways to fuse them, and the choice of a mixture on valid examples."""
