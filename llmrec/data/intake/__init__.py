"""Intake: users' own files as they are, read into a Dataset.

Files of this package, in the order in which data passes through them: `content` opens one file (compression, encoding,
line ends), `layouts` knows public files by name and first lines, `delimited`, `json_lines` and `files` read rows of any
format, of one file or of a directory, `choose` says which column is which, `times` and `values` convert cells, and
`read` puts it together. Cells of CSV and JSON lines reach `values` as text, a list or an object as its JSON text; cells
of parquet keep their types. What a reader should know of how the files were read is a sentence in `Dataset.notes`.
"""
