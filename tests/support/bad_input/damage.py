"""Ways to break an artefact; each returns a function of the path of the copy that it may break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from llmrec.runtime.manifest import MANIFEST, sha256_file
from llmrec.runtime.stage_directory import RUN

from . import Break

Tensors = dict[str, np.ndarray]


def text(content: str | bytes) -> Break:
    """A file of this content."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def folder(*files: str) -> Break:
    """A directory of empty files, which llmrec did not write."""

    def make(path: Path) -> None:
        path.mkdir()
        for name in files:
            (path / name).touch()

    return make


def replaced(old: str, new: str) -> Break:
    """A text file in which the first `old` is `new`."""

    def edit(path: Path) -> None:
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))

    return edit


def removed(name: str) -> Break:
    return lambda path: (path / name).unlink()


def cut(name: str) -> Break:
    """The first half of a file, as a full disk or a broken copy leaves it."""
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[: (path / name).stat().st_size // 2])


def inside(name: str, content: str) -> Break:
    """A file of a directory with other content."""
    return lambda path: (path / name).write_text(content)


def json_values(name: str, **changes: object) -> Break:
    """A JSON file of a directory with other values at its top level."""

    def edit(path: Path) -> None:
        (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | changes))

    return edit


def resealed(*steps: Break) -> Break:
    """Damage that the manifest does not show: its hashes are those of the damaged files."""

    def edit(path: Path) -> None:
        for step in steps:
            step(path)
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"] = {name: sha256_file(path / name) for name in manifest["files"]}
        (path / MANIFEST).write_text(json.dumps(manifest))

    return edit


def without_manifest(*steps: Break) -> Break:
    """A directory made elsewhere, in llmrec's format."""

    def edit(path: Path) -> None:
        for step in steps:
            step(path)
        (path / MANIFEST).unlink()

    return edit


def unfinished(path: Path) -> None:
    """A killed run: no manifest yet, and the directory is called partial."""
    identity = json.loads((path / MANIFEST).read_text())["identity"]
    (path / RUN).write_text(json.dumps(identity))
    (path / MANIFEST).unlink()
    path.rename(path.with_name(path.name + ".partial"))


def parquet(name: str, change: Callable[[pa.Table], pa.Table]) -> Break:
    return lambda path: pq.write_table(change(pq.read_table(path / name)), path / name)


def column(name: str, value: object, row: int | None = None) -> Callable[[pa.Table], pa.Table]:
    """A table whose column is `value` in every row, or in one."""

    def change(table: pa.Table) -> pa.Table:
        place, field = table.column_names.index(name), table.schema.field(name)
        values = [value if row in (None, i) else cell for i, cell in enumerate(table[name].to_pylist())]
        return table.set_column(place, name, pa.array(values, field.type))

    return change


def retyped(name: str, dtype: str) -> Callable[[pa.Table], pa.Table]:
    """A table whose column has another type."""
    return lambda table: table.set_column(table.column_names.index(name), name, table[name].cast(dtype))


def tensors(name: str, change: Callable[[Tensors], Tensors]) -> Break:
    """A safetensors file with other tensors, and no metadata, as if made elsewhere."""

    def edit(path: Path) -> None:
        save_file(change(load_file(path / name)), path / name, metadata={"format": "pt"})

    return edit


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def nan_at(row: int) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        tensors["vectors"][row, 0] = np.nan
        return tensors

    return change


def all_equal(tensors: Tensors) -> Tensors:
    return {"vectors": np.ones_like(tensors["vectors"]), "missing": np.zeros_like(tensors["missing"])}


def pickled(path: Path) -> None:
    """Weights as a pickle, whose loading could run code, instead of safetensors."""
    import torch

    torch.save({name: torch.from_numpy(t) for name, t in load_file(path / "model.safetensors").items()},
               path / "pytorch_model.bin")  # fmt: skip
    (path / "model.safetensors").unlink()


def other_words(path: Path) -> None:
    """The tokenizer of a model that was never extended."""
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["special"]]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def replaced_by(name: str) -> Break:
    """Another directory of the same parent, copied over this one."""

    def edit(path: Path) -> None:
        shutil.rmtree(path)
        shutil.copytree(path.parent / name, path)

    return edit
