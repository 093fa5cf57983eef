"""ItemViews: vectors of the items in catalogue order, one safetensors file per source.

A view file `<name>.safetensors` holds `vectors` (N, D) float32, `missing` (N,) bool and, as metadata, JSON with the
provenance of the vectors (docs/embed.md). Files made elsewhere in this format can be used too; without provenance,
nothing checks that they belong to the catalogue.

Shapes: N items, D dimension of the view.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from llmrec import __version__
from llmrec.data.catalog import Catalog
from llmrec.runtime.manifest import MANIFEST, content_hash, read_manifest, verify
from llmrec.views import written
from llmrec.views.mapped import let_go

SUFFIX = ".safetensors"
BLOCK = 65536  # items checked together
# Squared distances of vectors up to this norm, summed over 10^7 items, stay below the largest float32, 3.4e38.
LARGEST_NORM = 1e15


class VectorError(ValueError):
    """Vectors that cannot be used.

    Args:
        problem: What is wrong with them, to follow "has".
        row: First item row that has one.
        remedy: Next step of the user.
    """

    def __init__(self, problem: str, row: int, remedy: str):
        super().__init__(f"A view has {problem}, first at item row {row}. {remedy}")
        self.problem, self.row, self.remedy = problem, row, remedy


@dataclass(frozen=True)
class View:
    """Vectors of all items from one source.

    Attributes:
        vectors: (N, D) float32, zero where `missing`.
        missing: (N,) bool, True for items that have no vector.
        provenance: Encoder, its settings and the catalogue, as text; empty for a file made elsewhere.

    Raises:
        ValueError: If the arrays have another type or shape, or a vector is not finite or longer than 1e15: any of
            these would give wrong semantic IDs without a word.

    Examples:
        >>> import numpy as np
        >>> from llmrec.views import View
        >>> View(np.eye(3, dtype=np.float32), missing=np.zeros(3, bool)).vectors.shape
        (3, 3)
        >>> View(np.full((3, 3), np.nan, np.float32), missing=np.zeros(3, bool))
        Traceback (most recent call last):
        llmrec.views.VectorError: A view has NaN or infinity in 3 vectors, first at item row 0. ...
    """

    vectors: np.ndarray
    missing: np.ndarray
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_arrays(self.vectors, self.missing)
        _check_values(self.vectors)

    def save(self, path: Path) -> None:
        """Write the view; the file appears only when it is complete."""
        written.write(path, self._blocks(), self.vectors.shape[1], self.missing, self.provenance)

    def _blocks(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self.vectors), BLOCK):
            yield self.vectors[first : first + BLOCK]
            let_go(self.vectors, slice(first, first + BLOCK))


class ItemViews(dict[str, View]):
    """Name -> View; all views are over the items of one catalogue."""

    @classmethod
    def load(cls, directory: str | Path, catalog: Catalog, names: Sequence[str] | None = None) -> ItemViews:
        """Read and check the views of a directory.

        Args:
            directory: Directory written by `llmrec embed`, or any directory of view files.
            catalog: Catalogue of the items.
            names: Views to read, in this order; all in alphabetical order by default.

        Raises:
            ValueError: If a view is absent, unreadable, from another catalogue, of another size or not finite.
        """
        files = view_files(directory, names)
        views = cls({name: read_view(path, catalog.item_ids) for name, path in files.items()})
        for name, path in files.items():
            _check(views[name], catalog, path)
        return views

    @property
    def known(self) -> np.ndarray:
        """(N,) bool, True for items that have a vector in at least one view."""
        return ~np.all([view.missing for view in self.values()], axis=0)

    def save(self, directory: str | Path) -> None:
        """Write every view as `<name>.safetensors`."""
        for name, view in self.items():
            view.save(Path(directory) / (name + SUFFIX))


def view_files(directory: str | Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """Find the views of a directory: name -> file. The output of `llmrec embed` is verified against its manifest.

    Raises:
        ValueError: If the directory is unfinished, was changed, holds no view or lacks one of `names`.
    """
    directory = Path(directory)
    found = {path.stem: path for path in sorted(directory.glob("*" + SUFFIX))}
    if (directory / MANIFEST).is_file():
        verify(directory, "embed")
    elif not found:
        read_manifest(directory)  # says whether the directory is absent or unfinished
    unknown = [name for name in names or () if name not in found]
    if unknown or not found or names == []:
        raise ValueError(
            f"view_names asks for {names}, but '{directory}' holds {sorted(found)}. Choose from these, or build the "
            "others with `llmrec embed --views`."
        )
    return {name: found[name] for name in names or found}


def vector_shapes(directory: str | Path, names: Sequence[str] | None = None) -> list[tuple[int, int]]:
    """Read the sizes of the views from the heads of their files, before anything is verified.

    Args:
        directory: Directory of view files.
        names: Views that are meant; all when left out.

    Returns:
        (N, D) of each; a file that cannot be read has none, and `view_files` or `read_view` says what is wrong with it.
    """
    shapes = []
    for path in Path(directory).glob("*" + SUFFIX):
        if names is None or path.stem in names:
            with contextlib.suppress(SafetensorError, OSError, ValueError), safe_open(path, framework="numpy") as file:
                num_items, dim = file.get_slice("vectors").get_shape()
                shapes.append((num_items, dim))
    return shapes


def describe(view: str, catalog: Catalog, **settings: object) -> dict[str, str]:
    """Provenance of a view: its catalogue, its settings and the version of llmrec, as text."""
    facts = {"view": view, "catalog_sha256": content_hash(catalog.source), "llmrec": __version__, **settings}
    return {key: str(value) for key, value in facts.items()}


def scatter(vectors: np.ndarray, rows: np.ndarray, num_items: int, facts: dict[str, str]) -> View:
    """Make a view over all items from the vectors of some; the others are missing.

    Args:
        vectors: (len(rows), D) vectors.
        rows: Item rows that the vectors belong to, each once.
        num_items: N.
        facts: Provenance of the view.
    """
    full = np.zeros((num_items, vectors.shape[1]), np.float32)
    full[rows] = vectors
    missing = np.ones(num_items, bool)
    missing[rows] = False
    return View(full, missing, facts)


def read_view(path: Path, item_ids: Sequence[str]) -> View:
    """Read a view file; `ItemViews.load` also checks that it is of a catalogue.

    Args:
        path: The file.
        item_ids: Ids of the items, which errors name.

    Raises:
        ValueError: If it cannot be read, or its vectors cannot be used.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: _tensor(file, name, path) for name in file.keys()}  # noqa: SIM118 (no iterator)
            provenance = dict(json.loads((file.metadata() or {}).get("provenance", "{}")))
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a view ({error}); write it again.") from error
    if set(tensors) != {"vectors", "missing"}:
        raise ValueError(f"{path} holds the tensors {sorted(tensors)}; a view needs 'vectors' and 'missing'.")
    try:
        view = View(tensors["vectors"], tensors["missing"], provenance)
    except VectorError as error:
        item = f" (item_id '{item_ids[error.row]}')" if error.row < len(item_ids) else ""
        raise ValueError(f"{path} has {error.problem}, first at item row {error.row}{item}. {error.remedy}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if (view.missing.view(np.uint8) > 1).any() or view.vectors[view.missing].any():
        raise ValueError(
            f"{path}: the missing flags do not fit the vectors, which are zero for missing items; write it again."
        )
    return view


def _tensor(file: safe_open, name: str, path: Path) -> np.ndarray:
    """Read a tensor, memory-mapped if possible: the vectors of a large catalogue may not fit into memory."""
    found = file.get_slice(name)
    can_map = found.get_dtype() == "F32" and 0 not in found.get_shape()
    return _mapped(path, name) if can_map else file.get_tensor(name)


def _mapped(path: Path, name: str) -> np.ndarray:
    """Map a float32 tensor of a safetensors file, for reading alone.

    Source: https://huggingface.co/docs/safetensors; the format is the length of a JSON header, the header, the data.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        of = json.loads(file.read(length))[name]
    return np.memmap(path, "<f4", "r", 8 + length + of["data_offsets"][0], tuple(of["shape"]))


def _check(view: View, catalog: Catalog, path: Path) -> None:
    """Refuse vectors of another catalogue."""
    expected = view.provenance.get("catalog_sha256")
    if expected and expected != content_hash(catalog.source):
        raise ValueError(
            f"{path} was built from another catalogue than '{catalog.source}'; run `llmrec embed` on this catalogue."
        )
    if len(view.vectors) != catalog.num_items:
        raise ValueError(
            f"{path} has {len(view.vectors)} vectors, the catalogue '{catalog.source}' has {catalog.num_items} items; "
            "run `llmrec embed` on this catalogue."
        )


def _check_arrays(vectors: np.ndarray, missing: np.ndarray) -> None:
    """Refuse arrays of another type or shape than a view has."""
    for name, array in (("vectors", vectors), ("missing", missing)):
        if not isinstance(array, np.ndarray):
            raise ValueError(f"A view has {name} of type {type(array).__name__}; a numpy array is needed.")
    if vectors.dtype != np.float32 or vectors.ndim != 2 or missing.dtype != bool or missing.ndim != 1:
        raise ValueError(
            f"A view has vectors {vectors.dtype} {vectors.shape} and missing {missing.dtype} {missing.shape}; float32 "
            "(num_items, dim) and bool (num_items,) are needed. Convert them, as by `vectors.astype(np.float32)`."
        )
    if len(missing) != len(vectors) or vectors.shape[1] == 0:
        raise ValueError(
            f"A view has {len(vectors)} vectors of {vectors.shape[1]} numbers and {len(missing)} missing flags; give "
            "every item one of each, and one number at least."
        )


def _check_values(vectors: np.ndarray) -> None:
    """Refuse vectors that are not finite, or so long that their distances are not."""
    squares = np.zeros(len(vectors), np.float32)
    for first in range(0, len(vectors), BLOCK):
        rows = slice(first, first + BLOCK)
        with np.errstate(over="ignore", invalid="ignore"):  # of which the sums tell
            squares[rows] = np.einsum("nd,nd->n", vectors[rows], vectors[rows])
        let_go(vectors, rows)
    suspects = np.flatnonzero(~(squares <= LARGEST_NORM**2))
    if not len(suspects):
        return
    broken = suspects[~np.isfinite(vectors[suspects]).all(axis=1)]
    if len(broken):
        problem = f"NaN or infinity in {len(broken)} vectors"
        raise VectorError(problem, int(broken[0]), "Mark such items as missing with zeros, or build the view again.")
    problem = f"{len(suspects)} vectors of a norm above {LARGEST_NORM:.0e}"
    raise VectorError(problem, int(suspects[0]), "Scale the vectors down, as to norm 1.")
