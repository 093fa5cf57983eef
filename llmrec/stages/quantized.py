"""The vectors that the item tokenizer of a SID directory quantised: what head `projection` ranks items by.

Nothing has to name them: the manifest of `llmrec tokenize` says which catalogue and views its codes were made of.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from llmrec.data.catalog import Catalog
from llmrec.runtime.console import say
from llmrec.runtime.manifest import content_hash, read_manifest
from llmrec.sid.table import SidTable
from llmrec.tokenizers import load_tokenizer
from llmrec.views import ItemViews

REMEDY = "Run `llmrec tokenize` on views (token_rec on those of lightgcn, as TokenRec does), or take another head."


def quantized_vectors(sid: str | Path, table: SidTable) -> Tensor:
    """Read the vectors of all items of a SID table.

    Args:
        sid: Directory that `llmrec tokenize` wrote; its catalogue and views are still where they were.
        table: Its semantic IDs.

    Returns:
        (N, D) float32, zero for an item that no view knows.

    Raises:
        ValueError: If the semantic IDs were not made of vectors, or these are gone or have changed.
    """
    manifest = read_manifest(sid)
    sources, hashes = manifest.get("inputs", {}), manifest["identity"].get("inputs", {})
    missing = [name for name in ("catalog", "views") if name not in sources]
    if missing:
        raise ValueError(
            f"head 'projection' ranks by the vectors that were quantised, but '{sid}' was made without {missing[0]}. "
            f"{REMEDY}"
        )
    for name in ("catalog", "views"):
        if not Path(sources[name]).exists() or content_hash(sources[name]) != hashes[name]:
            raise ValueError(
                f"head 'projection' needs the {name} that '{sid}' was made of, but '{sources[name]}' is gone or has "
                "changed. Restore it, or run `llmrec tokenize` again."
            )
    tokenizer, catalog = load_tokenizer(sid, "cpu"), Catalog.load(sources["catalog"])
    if not tokenizer.needs_views:
        raise ValueError(f"method '{tokenizer.method}' of '{sid}' quantises no vectors to rank by. {REMEDY}")
    views = ItemViews.load(sources["views"], catalog, tokenizer.view_names)
    read = tokenizer.encode(catalog, views).vectors
    if read is None:
        raise ValueError(f"method '{tokenizer.method}' of '{sid}' quantises no vectors to rank by. {REMEDY}")
    rows = catalog.item_rows(table.item_ids.array)
    vectors_ND = read(rows).to(torch.float32)
    unknown = int((~vectors_ND.any(dim=1)).sum())
    if unknown:
        say(f"extend: {unknown} of {len(rows)} items have no vector in the views {list(views)}; they are ranked last.")
    return vectors_ND
