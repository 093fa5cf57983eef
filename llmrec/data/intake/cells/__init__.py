"""Cells: what the text, lists, numbers and prices of an item table mean."""
