"""Public layouts of interaction data: what is known about a file by its name and first lines, or by its columns."""
