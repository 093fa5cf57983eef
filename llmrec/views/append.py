"""Views of a catalogue that has grown: the items that it had keep their vectors to the bit, and new ones get theirs.

A vector of a new item comes from its text (by the same encoder, or by the words and weights that TF-IDF was fitted to),
from its coordinates (`geographic`) or from a file (`external`). Views that were learned from behaviour or from a graph
of all items have no vector for an item that they have not seen; it is missing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import content_hash, read_manifest
from llmrec.views import View, read_view, view_files

HASH = "catalog_sha256"


@dataclass(frozen=True)
class OldViews:
    """Views of the catalogue that another one was appended to.

    Attributes:
        directory: Directory that they were read from.
        views: Name -> view.
        num_items: Number of items that they know.
    """

    directory: Path
    views: dict[str, View]
    num_items: int

    @classmethod
    def load(cls, directory: str | Path, catalog: Catalog) -> OldViews:
        """Read the views of a directory.

        Args:
            directory: Directory written by `llmrec embed`.
            catalog: Catalogue written by `llmrec prepare --append-to` from the one of the views.

        Raises:
            ValueError: If the catalogue was not appended to that of the views, or a view cannot be read.
        """
        before = read_manifest(catalog.source)["identity"].get("inputs", {}).get("append_to")
        if before is None:
            raise ValueError(
                f"'{catalog.source}' was not made by `llmrec prepare --append-to`, so nothing says which of its items "
                f"'{directory}' knows. Append to the old catalogue, or build the views without --append."
            )
        views = {name: read_view(path, catalog.item_ids) for name, path in view_files(directory).items()}
        for name, view in views.items():
            if view.provenance.get(HASH, before) != before:
                raise ValueError(
                    f"view '{name}' of '{directory}' is of another catalogue than the one that '{catalog.source}' was "
                    "appended to; give the views of that one."
                )
        sizes = {len(view.vectors) for view in views.values()}
        if len(sizes) > 1 or max(sizes) > catalog.num_items:
            raise ValueError(f"the views of '{directory}' are of {sorted(sizes)} items; give views of one catalogue.")
        return cls(Path(directory), views, sizes.pop())

    def grown(self, name: str, new: View | None, catalog: Catalog) -> View:
        """Put the vectors of new items behind those of a view.

        Args:
            name: Name of the view.
            new: View over all items of `catalog`, of which only the new ones are read; None if there is none.
            catalog: The catalogue that has grown.

        Raises:
            ValueError: If `new` has vectors of another dimension.
        """
        old = self.views[name]
        count = catalog.num_items - self.num_items
        vectors, missing = np.zeros((count, old.vectors.shape[1]), np.float32), np.ones(count, bool)
        if new is not None:
            if new.vectors.shape[1] != old.vectors.shape[1]:
                raise ValueError(
                    f"new vectors of view '{name}' have {new.vectors.shape[1]} dimensions, the old ones "
                    f"{old.vectors.shape[1]}; use the encoder that made the old ones."
                )
            vectors, missing = new.vectors[self.num_items :], new.missing[self.num_items :]
        facts = {**old.provenance, HASH: content_hash(catalog.source)} if old.provenance else {}
        return View(np.concatenate([old.vectors, vectors]), np.concatenate([old.missing, missing]), facts)
