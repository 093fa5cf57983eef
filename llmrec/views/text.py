"""Text view: vectors of titles and descriptions, by a sentence encoder or by TF-IDF.

Any sentence-transformers model can be the encoder. Its vectors are kept in chunks in the scratch directory of the
stage, so a killed run loses at most one chunk; under `accelerate launch` the processes share the chunks. TF-IDF with a
truncated SVD (latent semantic analysis, Deerwester et al. 1990) needs no model and no network.

An item without text is missing. It is not embedded as an empty string, for which encoders give an arbitrary vector.
"""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from llmrec.data.catalog import Catalog
from llmrec.runtime import disk, processes
from llmrec.runtime.console import progress, say
from llmrec.runtime.device import resolve_device
from llmrec.sid.tokens.ordinary_text import break_markers
from llmrec.views import View, describe, scatter
from llmrec.views.tfidf import Tfidf

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TFIDF = "tfidf"
TFIDF_DIM = 128
CHUNK = 1024  # texts per scratch file: about ten seconds of MiniLM on two CPU cores


def render_texts(catalog: Catalog, template: str) -> list[str]:
    """Fill the template for every item; the text is "" if all columns that the template names are empty.

    Raises:
        ValueError: If the template is malformed, names a column that items.parquet lacks, or leaves no item any text.
    """
    fields = _template_fields(template, catalog)
    values = [[_as_text(value) for value in catalog.items[name].to_pylist()] for name in fields]
    texts = [
        template.format(**dict(zip(fields, row, strict=True))) if any(row) else "" for row in zip(*values, strict=True)
    ]
    if not any(texts):
        raise ValueError(
            f"No item of {catalog.source}/items.parquet has text in {fields}; choose other columns with "
            f"`text_template` (there are {catalog.items.column_names}) or leave 'text' out of `views`."
        )
    return texts


def _template_fields(template: str, catalog: Catalog) -> list[str]:
    try:
        parts = [
            (name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"text_template '{template}' is malformed: {error}.") from error
    if any(spec or conversion for _, spec, conversion in parts):
        raise ValueError(
            f"text_template '{template}' has a format after a column; every value is text, so name it alone."
        )
    fields = list(dict.fromkeys(name for name, _, _ in parts))
    unknown = [name for name in fields if name not in catalog.items.column_names]
    if unknown or not fields:
        raise ValueError(
            f"text_template '{template}' must name columns of {catalog.source}/items.parquet "
            f"({catalog.items.column_names}); " + (f"it has no {unknown}." if unknown else "it names none.")
        )
    records = [name for name in fields if _holds_records(catalog.items.schema.field(name).type)]
    if records:
        raise ValueError(
            f"text_template '{template}' names {records}, which hold records (structs or maps), not text; name columns "
            "of text, numbers or lists of these."
        )
    return fields


def _holds_records(dtype: pa.DataType) -> bool:
    while pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        dtype = dtype.value_type
    return pa.types.is_struct(dtype) or pa.types.is_map(dtype)


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    return "" if value is None else str(value).strip()


def load_encoder(name: str, device: str) -> SentenceTransformer:
    """Load a sentence-transformers model from the Hub or a directory; code that comes with a model is not run.

    Raises:
        ModuleNotFoundError: If sentence-transformers is not installed.
        ValueError: If there is no such model, or it cannot be reached.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"text_encoder '{name}' needs sentence-transformers: `pip install llmrec[embed]`; "
            f"or use text_encoder '{TFIDF}', which needs nothing."
        ) from None
    try:
        return SentenceTransformer(name, device=str(resolve_device(device)), trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"text_encoder '{name}' could not be loaded ({reason}). Give the Hub id or the directory of a "
            f"sentence-transformers model, check the network, or use '{TFIDF}', which needs no model."
        ) from error


def encoder_view(
    catalog: Catalog,
    encoder: SentenceTransformer,
    name: str,
    template: str,
    batch_size: int,
    scratch: Path,
    first: int = 0,
) -> View | None:
    """Embed the text of every item that has one, from row `first` on.

    Args:
        catalog: Catalogue of the items.
        encoder: Loaded model.
        name: Name of the model for the provenance.
        template: Text with columns of items.parquet in braces.
        batch_size: Texts that the model reads together.
        scratch: Directory for finished chunks; the stage uses it for this encoder and template alone.
        first: First item row to be embedded; the others are missing.

    Returns:
        The view, or None if no item has text, or in a process that is not the first of an `accelerate launch`.
    """
    texts = render_texts(catalog, template)
    rows = np.flatnonzero([bool(text) and row >= first for row, text in enumerate(texts)])
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    files = [scratch / f"text-{i:06d}.npy" for i in range(len(chunks))]
    scratch.mkdir(parents=True, exist_ok=True)
    mine = list(zip(files, chunks, strict=True))[processes.rank() :: processes.count()]
    for file, chunk in progress(mine, "Embedding text", unit=f"chunks of {CHUNK} items"):
        if not file.exists():
            batch = break_markers([texts[row] for row in chunk], markers_of(encoder))
            _save_chunk(file, encoder.encode(batch, batch_size=batch_size, show_progress_bar=False))
    processes.wait()
    if not processes.is_main() or not files:
        return None
    # In a file: all vectors of a large catalogue may not fit into memory.
    shape, place = (catalog.num_items, np.load(files[0]).shape[1]), scratch / "text-joined.npy"
    vectors = np.lib.format.open_memmap(place, "w+", np.float32, shape)
    missing = np.ones(catalog.num_items, bool)
    for file, chunk in zip(files, chunks, strict=True):
        vectors[chunk], missing[chunk] = np.load(file, allow_pickle=False), False
    vectors.flush()
    facts = describe("text", catalog, encoder=name, template=template)
    return View(np.load(place, mmap_mode="r"), missing, facts)


def markers_of(encoder: SentenceTransformer) -> list[str]:
    """List the strings that an encoder's tokenizer reads as one token, such as `[SEP]`; a title may contain them."""
    added = getattr(getattr(encoder, "tokenizer", None), "added_tokens_decoder", {})
    return [token.content for token in added.values()]


def _save_chunk(path: Path, vectors: np.ndarray) -> None:
    with disk.replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, vectors.astype(np.float32))


def tfidf_view(catalog: Catalog, template: str, dim: int, seed: int, keep: Path | None = None) -> View:
    """Compute TF-IDF of words, reduced by a truncated SVD.

    Args:
        catalog: Catalogue of the items.
        template: Text with columns of items.parquet in braces.
        dim: Dimension of the vectors; smaller if there are fewer texts or words.
        seed: Seed of the truncated SVD.
        keep: Directory that takes words, weights and axes, for the items of a later catalogue.

    Raises:
        ValueError: If no text has a word.
    """
    texts = render_texts(catalog, template)
    try:
        model, rows, vectors = Tfidf.fit(texts, dim, seed)
    except ValueError as error:
        raise ValueError(f"No text of {catalog.source}/items.parquet has a word to count ({error}).") from error
    rank = vectors.shape[1]
    if rank < dim:
        say(f"{len(rows)} texts with {len(model.words)} words allow {rank} TF-IDF dimensions, not {dim}.")
    if keep is not None:
        model.save(keep)
    facts = describe("text", catalog, encoder=TFIDF, template=template, dim=rank, seed=seed)
    return scatter(vectors, rows, catalog.num_items, facts)


def new_tfidf_view(catalog: Catalog, template: str, model: Tfidf, first: int) -> View:
    """Compute TF-IDF of the items from row `first` on, by the words, weights and axes of an earlier catalogue.

    Args:
        catalog: Catalogue of the items.
        template: Text with columns of items.parquet in braces.
        model: Fitted to the earlier catalogue.
        first: First item row to be embedded; the others are missing.
    """
    rows, vectors = model.transform(render_texts(catalog, template)[first:])
    lost = catalog.num_items - first - len(rows)
    if lost:
        say(f"text: {lost} new items have no word that the old ones have, and are missing.")
    return scatter(vectors.astype(np.float32), rows + first, catalog.num_items, {})
