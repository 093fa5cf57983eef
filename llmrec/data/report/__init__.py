"""Data report: what a log holds, what `prepare` kept of it, and what its owner should know before training.

`steps` counts what each filter keeps, `times` and `ids` look for what joins and exports break, `behaviour` and `fields`
describe users and items, `facts` puts the numbers together, and `verdicts` says what they mean. All functions read
frames with the columns of `llmrec.data.columns`; none changes them.
"""
