"""The client of docs/serving.md, word for word, against a service."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from llmrec.configs.serve import Limits
from llmrec.serve.gate import Access
from tests.serve.conftest import HISTORY

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
KEY = "a-long-enough-api-key"


def test_the_client_of_the_page_is_answered(running, generation):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(code, names)
    server = running(access=Access(KEY))
    client = names["Client"](port=server.port, key=KEY)
    for _ in range(2):  # on one connection
        answers = client.recommend([HISTORY, []], k=3)
        items, _ = generation.recommender.recommend([HISTORY, []], k=3)
        assert [[item["item_id"] for item in answer["items"]] for answer in answers] == items
    with pytest.raises(RuntimeError, match=r"^422: 0\.k: input should be less than or equal to 100"):
        client.recommend([HISTORY], k=101)
    with pytest.raises(RuntimeError, match="401"):
        names["Client"](port=server.port, key="wrong").recommend([HISTORY])


def test_the_table_of_limits_is_of_today():
    table = PAGE.read_text(encoding="utf-8").partition("## Limits")[2].partition("\n## ")[0]
    for field in dataclasses.fields(Limits):
        if field.name != "max_wait_ms":
            assert re.search(rf"`--{field.name.replace('_', '-')}` \| {field.default:,} \|", table), field.name
