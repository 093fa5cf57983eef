from __future__ import annotations

import json

import pytest

from llmrec.cli import run
from tests.support.foreign import INDEX


@pytest.fixture
def import_(tmp_path):
    """The command, with the index in a file; returns its result."""

    def call(layout, checkpoint, index=INDEX, **files):
        (tmp_path / "index.json").write_text(json.dumps(index))
        flags = {
            "layout": layout,
            "model": checkpoint,
            "index": tmp_path / "index.json",
            "out": tmp_path / "out",
            **files,
        }
        run(["import", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))])
        return tmp_path / "out"

    return call
