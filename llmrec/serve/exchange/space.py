"""A Hugging Face Space: a folder from which the Hub builds a container that serves a checkpoint and its page.

The container runs as user 1000, as the Hub asks, listens on its port, reads nothing from the network and knows no
secret. Who sees the Space may ask it, so a Space is private unless it is made otherwise.

Source: huggingface.co/docs/hub/spaces-sdks-docker.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import SpaceCardData

from llmrec.data.catalog import SPLIT_TYPES, Catalog
from llmrec.model.card import shown
from llmrec.model.checkpoint import SidConfig
from llmrec.model.sharing.push import checkpoint_files
from llmrec.runtime.manifest import JsonObject, adopt
from llmrec.sid.catalogs.catalog_record import CatalogRecord
from llmrec.sid.catalogs.given_catalog import match_catalog

PORT = 7860
HUB = "https://huggingface.co"  # which shows a Space in a frame
CHECKPOINT, CATALOG = "checkpoint", "catalog"
DOCKERFILE = """# A commit in the place of main fixes the version.
ARG LLMREC=https://github.com/llmrec/llmrec/archive/refs/heads/main.tar.gz
FROM python:3.12-slim
ARG LLMREC
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \\
 && pip install --no-cache-dir "llmrec[serve] @ ${{LLMREC}}"
RUN useradd --create-home --uid 1000 user
USER 1000
ENV HOME=/home/user HF_HUB_OFFLINE=1
WORKDIR /home/user/app
{copies}
EXPOSE {port}
CMD [{command}]
"""
TEXT = """# {title}

Recommendations of an LLM over HTTP, made with llmrec: its page is at `/`, its answers at `/v1/recommend`.

## What it shows

{shown}
{catalog}

Everybody who sees this Space may ask it for recommendations, and reads these files. It knows no secret."""


def write_space(checkpoint: Path, directory: Path, catalog: str | None = None) -> JsonObject:
    """Write the folder of a Space.

    Args:
        checkpoint: Directory of the checkpoint.
        directory: Existing directory to write.
        catalog: Catalogue whose items are shown, under their titles; its interactions are left out.

    Raises:
        ValueError: If the catalogue is of other items than the checkpoint.
    """
    _, table, details = SidConfig.load(checkpoint)
    (directory / CHECKPOINT).mkdir(exist_ok=True)
    for name, path in checkpoint_files(checkpoint).items():
        shutil.copyfile(path, directory / CHECKPOINT / name)
    folders, more, told = [CHECKPOINT], [], "No titles are shown."
    if catalog is not None:
        columns = write_items(Catalog.load(catalog), directory / CATALOG)
        match_catalog(
            Catalog.load(directory / CATALOG), table, CatalogRecord.load(checkpoint, details, table.num_items), details
        )
        folders, more = [CHECKPOINT, CATALOG], ["--catalog", CATALOG]
        told = f"Of the catalogue these columns of its items are shown: {', '.join(columns)}."
    command = ["llmrec", "serve", "--model", CHECKPOINT, *more, "--host", "0.0.0.0", "--port", str(PORT), "--anonymous",
               "--framed-by", HUB]  # fmt: skip
    quoted = ", ".join(f'"{word}"' for word in command)
    copies = "\n".join(f"COPY --chown=1000 {folder} {folder}" for folder in folders)
    (directory / "Dockerfile").write_text(DOCKERFILE.format(copies=copies, port=PORT, command=quoted), encoding="utf-8")
    title = f"Recommendations: {details.get('data', {}).get('dataset') or 'a catalogue'}"
    head = SpaceCardData(title=title, sdk="docker", app_port=PORT, tags=["llmrec", "recommendation"])
    text = TEXT.format(title=title, shown=shown(table, details), catalog=told)
    (directory / "README.md").write_text(f"---\n{head.to_yaml()}\n---\n\n{text}\n", encoding="utf-8")
    return {"items": table.num_items}


def write_items(catalog: Catalog, directory: Path) -> list[str]:
    """Write the items of a catalogue as one that has no interactions.

    Returns:
        Names of the columns.
    """
    directory.mkdir(exist_ok=True)
    pq.write_table(catalog.items, directory / "items.parquet")
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in SPLIT_TYPES}), directory / "split.parquet")
    adopt(directory, "prepare")
    return catalog.items.column_names
