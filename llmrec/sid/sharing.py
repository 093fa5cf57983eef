"""Semantic IDs as a dataset repository of the Hub: sid_table.parquet, a manifest, and a card.

The repository is a result of `llmrec tokenize` without its codebooks and report: what is downloaded is read by
`SidTable.load` and by `llmrec extend --sid`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import DatasetCardData

from llmrec.runtime import disk
from llmrec.runtime.hub.repository import Upload, upload
from llmrec.runtime.manifest import MANIFEST, read_manifest, verify, write_manifest
from llmrec.sid.table import FILE, SidTable

CARD = "README.md"
TEXT = """# {name}

Semantic IDs of the items of one catalogue, made with llmrec by the method `{method}`: {levels} levels of {sizes} codes
for {items} items{shared}.

## What it shows

`{file}` holds the ids of all {items} items and their codes{words}. Items with similar codes have similar views, such as
texts, or training interactions. No interaction and no user is in it.

## Load

```
hf download {repo} --repo-type dataset --local-dir sid
```

```python
from llmrec import SidTable

table = SidTable.load("sid")
```

`llmrec extend --sid sid --model …` adds these semantic IDs to an LLM."""


def push_sids(directory: str | Path, repo_id: str, private: bool = True, license: str | None = None) -> Upload:
    """Send the semantic IDs of a catalogue as one commit.

    Args:
        directory: Result of `llmrec tokenize`.
        repo_id: owner/name on the Hub.
        private: Visibility of a repository that is made; one that exists keeps its own.
        license: Id of a licence that the card claims, such as cc-by-4.0; none when left out.

    Raises:
        ConnectionError: If the Hub cannot be reached or refuses.
        ValueError: If the directory is no such result or was changed, or `repo_id` is no name of a repository.
    """
    made = read_manifest(verify(directory, "tokenize"))
    table = SidTable.load(directory)
    # What the next stages read of a manifest; its config and inputs have paths of this machine.
    inputs = {name: value for name, value in made["identity"].get("inputs", {}).items() if name == "catalog"}
    facts = {"stage": "tokenize", "identity": {"stage": "tokenize", "inputs": inputs}, "config": {}, "inputs": {},
             "counts": {}, "seconds": None, "seed": None}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, disk.naming(Path(scratch)):
        here = Path(scratch)
        table.save(here)
        write_manifest(here, [here / FILE], facts)
        method = made["identity"].get("config", {}).get("method", "unknown")
        (here / CARD).write_text(card(table, repo_id, method, license), encoding="utf-8")
        files = {name: here / name for name in (FILE, MANIFEST, CARD)}
        return upload(files, repo_id, "dataset", private, (FILE, MANIFEST))


def card(table: SidTable, repo_id: str, method: str, license: str | None) -> str:
    """Write the dataset card of a table.

    Args:
        table: Semantic IDs.
        repo_id: owner/name on the Hub.
        method: Name of the item tokenizer.
        license: Id of a licence; none is claimed when left out.
    """
    name = repo_id.rsplit("/", 1)[-1]
    data = DatasetCardData(
        license=license,
        tags=["llmrec", "semantic-ids", "recommendation"],
        pretty_name=f"Semantic IDs: {name}",
        configs=[{"config_name": "default", "data_files": FILE}],
    )
    num_sids = len({tuple(codes) for codes in table.all_codes.tolist()})
    text = TEXT.format(
        name=name,
        repo=repo_id,
        file=FILE,
        method=method,
        items=table.num_items,
        levels=table.num_levels,
        sizes=table.level_sizes,
        shared="" if num_sids >= table.num_items else f", {num_sids} of them distinct",
        words=", and no title"
        if table.words is None
        else ", and the words that these stand for, often those of titles",
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"
