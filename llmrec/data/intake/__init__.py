"""Intake: users' own files as they are, read into a Dataset.

Parts of this package, in the order in which data passes through them: `files` opens one file or a directory of any
format (compression, encoding, separator), `public` knows public files by their first lines or columns, `choose` says
which column is which, `times` and `values` convert the cells of a log, `cells` those of an item table, and `read` puts
it together. Cells of CSV and JSON lines reach them as text, a list or an object as its JSON text; cells of parquet keep
their types. What a reader should know of how the files were read is a sentence in `Dataset.notes`.
"""
