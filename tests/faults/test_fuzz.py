"""A short run of each kind of fuzzing; docs/reliability.md has the counts of the long ones."""

from __future__ import annotations

import pytest

from tests.faults.fuzz.__main__ import fuzz
from tests.faults.fuzz.judge import ACCEPTED, FINISHED
from tests.faults.fuzz.kinds import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_fuzz(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    tally = fuzz(kind, first=0, count=100, directory=tmp_path)
    assert tally.defects == {}
    assert tally.mutations["1"] >= 50
    # Of options, most changes are refused: that is what they are for.
    assert tally.outcomes[FINISHED] + tally.outcomes[ACCEPTED] >= (15 if kind == "options" else 30)
