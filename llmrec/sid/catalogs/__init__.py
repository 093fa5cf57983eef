"""The catalogue that a checkpoint was made of, and one that it is given later."""
