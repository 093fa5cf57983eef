from __future__ import annotations

import pytest

from llmrec.recommender import Recommender


@pytest.fixture(scope="module")
def recommender(tuned):
    return Recommender.from_pretrained(tuned, device="cpu")
