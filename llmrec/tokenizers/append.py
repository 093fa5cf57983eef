"""Append mode: semantic IDs for the new items of a catalogue, by the tokenizer that gave the others theirs.

A published semantic ID never moves: models were trained on it. New items get the codes that the old tokenizer gives
them, and where these are taken, the old collision policy decides on what is left (llmrec/collisions/append.py).
Removal is refused: a published semantic ID is never given to another item, and the table is the memory of them.

Following the append mode of TorchEasyRec's SID tools.

Shapes: P published items, A new items, L levels of the tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.item_ids import UNKNOWN_ROW
from llmrec.runtime.manifest import verify
from llmrec.sid.aliases import aliases_of, codes_of_alias, join_aliases
from llmrec.sid.table import EMPTY, SidTable
from llmrec.tokenizers import Atomic, Encoded, ItemTokenizer, load_tokenizer
from llmrec.tokenizers.collisions import POLICIES
from llmrec.tokenizers.collisions.append import KEEP_CODES, codes_of_new_items
from llmrec.tokenizers.words.coder import WordCoder
from llmrec.views import ItemViews

REPORT = "report.json"
LEAST_AGREEMENT = 0.9  # of the published items must get their codes again from the new views
# Encoders whose vectors depend on the whole catalogue: on another one they are other vectors.
FITTED = ("tfidf", "ppmi-svd", "sasrec", "lightgcn", "famae", "ppmi-svd-smoothed")


@dataclass(frozen=True)
class PublishedSids:
    """Semantic IDs that models were trained on, and the tokenizer and policy that made them.

    Attributes:
        table: Semantic IDs.
        tokenizer: Fitted.
        policy: Collision policy.
    """

    table: SidTable
    tokenizer: ItemTokenizer
    policy: str

    @classmethod
    def load(cls, directory: str | Path, device: str = "auto") -> PublishedSids:
        """Read a directory that `llmrec tokenize` wrote, with or without append.

        Raises:
            ValueError: If it is not whole, or its tokenizer and table do not go together.
        """
        verify(directory, "tokenize")
        table, tokenizer = SidTable.load(directory), load_tokenizer(directory, device)
        try:
            policy = json.loads((Path(directory) / REPORT).read_text(encoding="utf-8"))["collision"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{Path(directory) / REPORT} does not say by which collision policy the semantic IDs were made "
                f"({error!r}); give a directory that `llmrec tokenize` of this version wrote."
            ) from error
        sizes = tokenizer.level_sizes
        if len(aliases_of(table)) != tokenizer.num_aliases:
            raise ValueError(
                f"'{directory}': items have {len(aliases_of(table))} semantic IDs, and the tokenizer gives "
                f"{tokenizer.num_aliases}; they were not written together. Run `llmrec tokenize` again."
            )
        if table.num_levels - len(sizes) not in (0, 1) or any(np.less(table.level_sizes[: len(sizes)], sizes)):
            raise ValueError(
                f"'{directory}': the table has levels of {table.level_sizes} codes, the tokenizer of {sizes}; they "
                "were not written together. Restore both files, or run `llmrec tokenize` again."
            )
        return cls(table, tokenizer, policy)

    def codes_of_alias(self, number: int) -> tuple[np.ndarray, list[int]]:
        """(P, L) codes of one alias as the tokenizer gives them, and the number of codes of each level."""
        return codes_of_alias(self.table, number, self.tokenizer.shares_codes)


@dataclass(frozen=True)
class AppendResult:
    """A table that has grown.

    Attributes:
        table: Semantic IDs of all items of the new catalogue, in its order.
        encoded: Codes of all of them by the tokenizer; those of published items may differ from the table's.
        new_rows: (A,) item rows that had no semantic ID.
        notes: Sentences for the report.
    """

    table: SidTable
    encoded: Encoded
    new_rows: np.ndarray
    notes: list[str]


def append(published: PublishedSids, catalog: Catalog, views: ItemViews) -> AppendResult:
    """Give the new items of a catalogue semantic IDs; the published ones stay as they are.

    Args:
        published: Of an earlier catalogue.
        catalog: Every item of that one, in any order, and new ones.
        views: Of `catalog`, by the encoders that the tokenizer was fitted on; none for a tokenizer without views.

    Returns:
        The table of all items. No level is smaller than the published one.

    Raises:
        ValueError: If a published item is absent, the tokenizer has no codes for new items, the views are not by the
            encoders it was fitted on, no code is free where a new item belongs, or the policy no longer exists.
    """
    old, policy = published.table, published.policy
    if policy not in POLICIES:
        raise ValueError(
            f"the semantic IDs were made with collision '{policy}', which this version does not have, so new items "
            f"cannot be appended. Run `llmrec tokenize` without append, with one of {', '.join(POLICIES)}, and train "
            "again."
        )
    old_rows, new_rows = _find(old, catalog)
    if old.words is not None:
        return _append_words(published, catalog, old_rows, new_rows)
    aliases, of_aliases = _encode(published, catalog, views, old_rows, new_rows), []
    for number, encoded in enumerate(aliases):
        old_codes, old_sizes = published.codes_of_alias(number)
        codes = np.full((catalog.num_items, old.num_levels), EMPTY)
        codes[old_rows], codes[new_rows] = old_codes, codes_of_new_items(policy, old_codes, encoded, new_rows)
        of_aliases.append(codes)
    sizes, grown = _grown(np.concatenate(of_aliases), old_sizes)
    table = join_aliases(catalog.item_ids, of_aliases, sizes, published.tokenizer.shares_codes, old.pieces)
    for before, after in zip(aliases_of(old), aliases_of(table), strict=True):
        assert (after.codes(old_rows) == before.codes(np.arange(old.num_items))).all()
    codes, encoded = of_aliases[0], aliases[0]
    if not len(new_rows):
        return AppendResult(table, encoded, new_rows, [f"No new items: all {old.num_items} keep their semantic IDs."])
    notes = [f"{len(new_rows)} new items; {old.num_items} keep their semantic IDs."]
    differs = codes[new_rows, : encoded.codes.shape[1]] != encoded.codes[new_rows]
    elsewhere = differs[:, :-1].any(axis=1)
    moved = (differs.any(axis=1) & ~elsewhere).sum()
    if moved:
        notes.append(f"{moved} new items have another last code than the tokenizer's, whose place was taken.")
    if elsewhere.any():
        notes.append(f"{elsewhere.sum()} new items are in the nearest cluster with free codes, as their own is full.")
    return AppendResult(table, encoded, new_rows, [*notes, *grown])


def _append_words(
    published: PublishedSids, catalog: Catalog, old_rows: np.ndarray, new_rows: np.ndarray
) -> AppendResult:
    """Write the new items in words of the LLM; those of a level that no item had yet are numbered behind the others."""
    old, coder = published.table, published.tokenizer.fitted
    assert isinstance(coder, WordCoder), "a method in words has such a coder"
    words, codes_AL = coder.append(old, catalog, new_rows)
    codes = np.full((catalog.num_items, old.num_levels), EMPTY)
    codes[old_rows], codes[new_rows] = old.codes(np.arange(old.num_items)), codes_AL
    coder.level_sizes = list(words.level_sizes)
    added = sum(words.level_sizes) - sum(old.level_sizes)
    notes = [f"{len(new_rows)} new items; {old.num_items} keep their words.", f"{added} words are new at their level."]
    return AppendResult(SidTable(catalog.item_ids, codes, words=words), Encoded(codes, words=words), new_rows, notes)


def _find(old: SidTable, catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """(P,) item row in the catalogue of each published item, and (A,) ascending rows of the others."""
    old_rows = catalog.row_of.rows(old.item_ids)
    gone = old.item_ids.of(np.flatnonzero(old_rows == UNKNOWN_ROW))
    if gone:
        raise ValueError(
            f"the catalogue '{catalog.source}' lacks {len(gone)} of {old.num_items} published items, first "
            f"'{gone[0]}'. A published semantic ID is never given to another item, so the item must stay: keep its row "
            "in items.parquet, and exclude it when recommending."
        )
    return old_rows, np.setdiff1d(np.arange(catalog.num_items), old_rows)


def _encode(
    published: PublishedSids, catalog: Catalog, views: ItemViews, old_rows: np.ndarray, new_rows: np.ndarray
) -> list[Encoded]:
    """Codes of the new catalogue by the old tokenizer, in each alias."""
    tokenizer = published.tokenizer
    if published.table.pieces is not None and (np.diff(np.append(old_rows, new_rows)) < 0).any():
        raise ValueError(
            f"in '{catalog.source}' items stand in another order than in the published table, or new ones before old "
            "ones. In pieces, the code that tells an item apart depends on those before it; keep the order, and put "
            "new items behind the others, as `llmrec prepare --append-to` does."
        )
    if isinstance(tokenizer, Atomic):  # the next numbers
        codes_N = np.empty(catalog.num_items, np.int64)
        codes_N[old_rows] = published.table.codes(np.arange(len(old_rows)))[:, 0]
        codes_N[new_rows] = len(old_rows) + np.arange(len(new_rows))
        return [Encoded(codes_N[:, None])]
    if not tokenizer.needs_views:
        raise ValueError(
            f"the codes of method '{tokenizer.method}' follow from the whole catalogue: new items have none that would "
            "leave the published ones where they are. Run `llmrec tokenize` without append, and train again."
        )
    aliases = tokenizer.encode_aliases(catalog, views)
    for number, encoded in enumerate(aliases):
        published_PL = published.codes_of_alias(number)[0]
        _check_agreement(encoded.codes[old_rows], published_PL, published.policy, views, old_rows)
    return aliases


def _check_agreement(
    codes_PL: np.ndarray, published_PL: np.ndarray, policy: str, views: ItemViews, old_rows: np.ndarray
) -> None:
    """Refuse views from which the tokenizer makes other codes of published items than it once did.

    Another encoder, an encoder fitted anew, and codebooks of another table all show in this measurement, where the
    provenance of a file may be wrong. Not all items need agree: texts change, and devices round differently.
    """
    settled = codes_PL.shape[1] - (policy not in KEEP_CODES)  # a last code may have been chosen again
    known_P = views.known[old_rows]
    same_P = (codes_PL[:, :settled] == published_PL[:, :settled]).all(axis=1)[known_P]
    if len(same_P) and same_P.mean() >= LEAST_AGREEMENT:
        return
    fitted = [name for name, view in views.items() if view.provenance.get("encoder") in FITTED]
    cause = (
        f"{fitted} are fitted to a catalogue and are other vectors on another one: let the views of the old one grow "
        "by `llmrec embed --append`, which keeps its vectors"
        if fitted
        else "They come from another encoder or template than those it was fitted on, or its codebooks.safetensors is "
        "not the table's: run `llmrec embed` with the old options on the new catalogue"
    )
    raise ValueError(
        f"from the views {list(views)} the tokenizer makes the published codes again for {same_P.sum()} of "
        f"{len(same_P)} items that they know; {LEAST_AGREEMENT:.0%} are needed. {cause}."
    )


def _grown(codes: np.ndarray, level_sizes: list[int]) -> tuple[list[int], list[str]]:
    """Level sizes with room for all codes, and a note for each level that grew."""
    sizes = np.maximum(level_sizes, codes.max(axis=0) + 1).tolist()
    return sizes, [
        f"Level {level} grew from {old} to {new} codes; an LLM without spare codes there needs new tokens."
        for level, (old, new) in enumerate(zip(level_sizes, sizes, strict=True))
        if new > old
    ]
