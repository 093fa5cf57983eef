"""Keys and hosts: who may ask, and who may change the catalogue."""

from __future__ import annotations

import pytest

from llmrec.serve.gate import Access
from tests.serve.conftest import HISTORY, error_of

KEY, TOKEN = "a-long-enough-api-key", "a-long-enough-admin-token"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [None, bearer("wrong"), bearer(KEY[:-1]), {"Authorization": KEY}, bearer(TOKEN)])
def test_without_the_key_nothing_is_answered(ask, headers):
    answer = ask({"history": HISTORY}, access=Access(KEY, TOKEN), headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert error_of(answer) == "The API key is missing or wrong; send 'Authorization: Bearer …'."


def test_with_the_key_requests_are_answered(ask):
    assert ask({"history": HISTORY}, access=Access(KEY), headers=bearer(KEY)).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ready", 200), ("/version", 401), ("/metrics", 401),
                                              ("/openapi.json", 401), ("/nothing", 401), ("/page", 401)])  # fmt: skip
def test_only_health_and_ready_are_open(ask, path, status):
    assert ask(path=path, method="GET", access=Access(KEY)).status_code == status


@pytest.mark.parametrize("route", ["reload", "append", "remove", "rollback"])
def test_changes_are_off_without_a_token_and_the_api_key_is_none(ask, route):
    path = f"/v1/catalog:{route}"
    off = ask({}, path=path, access=Access(KEY), headers=bearer(KEY))
    assert off.status_code == 403 and "start the service with LLMREC_ADMIN_TOKEN" in error_of(off)
    wrong = ask({}, path=path, access=Access(KEY, TOKEN), headers=bearer(KEY))
    assert wrong.status_code == 401 and error_of(wrong).startswith("The admin token is missing or wrong")


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("localhost:8000", 200), ("[::1]:8000", 200),
                                              ("LOCALHOST", 200), ("evil.example", 403), ("", 403)])  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_refused(ask, host, status):
    access = Access(hosts=frozenset({"localhost", "::1"}))
    assert ask({"history": HISTORY}, access=access, headers={"Host": host}).status_code == status
