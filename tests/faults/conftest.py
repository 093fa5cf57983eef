"""The line of all stages, run to its end once for each module of tests."""

from __future__ import annotations

import pytest

from tests.faults.line import Line


@pytest.fixture(scope="module")
def line(forks, tmp_path_factory) -> Line:
    return Line(forks, tmp_path_factory.mktemp("line"))
