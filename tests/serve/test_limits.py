"""Every bound of a request: what is beyond it is refused with one sentence, before the model sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from llmrec.configs.serve import Limits, ServeConfig
from llmrec.serve.messages import MAX_ID
from tests.serve.conftest import HISTORY, error_of

SMALL = {"max_batch": 2, "max_history": 3, "max_k": 5, "max_beams": 6, "max_items": 4, "max_body_kib": 1}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"history": ["item-1"] * 4}, "history: list should have at most 3 items, not 4."),
        ({"history": ["i" * (MAX_ID + 1)]}, "history.0: string should have at most 256 characters."),
        ({"history": [""]}, "history.0: string should have at least 1 character."),
        ({"history": HISTORY, "k": 6}, "k: input should be less than or equal to 5."),
        ({"history": HISTORY, "k": 0}, "k: input should be greater than or equal to 1."),
        ({"history": HISTORY, "k": "5"}, "k: input should be a valid integer."),
        ({"history": HISTORY, "k": True}, "k: input should be a valid integer."),
        ({"history": HISTORY, "num_beams": 7}, "num_beams: input should be less than or equal to 6."),
        ({"history": HISTORY, "min_new": 6}, "min_new: input should be less than or equal to 5."),
        ({"history": HISTORY, "min_new": -1}, "min_new: input should be greater than or equal to 0."),
        ({"history": HISTORY, "allow": ["a"] * 5}, "allow: list should have at most 4 items, not 5."),
        ({"history": HISTORY, "exclude": ["a"] * 5}, "not 5."),
        ({"history": HISTORY, "exclude": "all"}, "exclude: input should be 'seen' or input should be a valid list."),
        ({"history": HISTORY, "filter": []}, "filter: there is no such key."),
        ({"histories": HISTORY}, "history: it is missing; histories: there is no such key."),
        ({"history": HISTORY, "unknown": "ask"}, "unknown: input should be 'skip' or 'error'."),
        ([{"history": HISTORY}] * 3, "the body: list should have at most 2 items, not 3."),
        ([], "the body: list should have at least 1 item, not 0."),
        ([{"history": HISTORY}, {"history": HISTORY, "k": 9}], "1.k: input should be less than or equal to 5."),
        ("text", "the body: input should be an object."),
        (None, "the body: "),
        ({"history": HISTORY, "k": 5, "num_beams": 2}, "num_beams is 2, fewer than k = 5"),
        ({"history": HISTORY, "k": 2, "min_new": 3}, "min_new is 3, more than k = 2"),
    ],
)
def test_a_value_out_of_bounds_is_refused(ask, body, sentence):
    answer = ask(body, **SMALL)
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "invalid"
    assert sentence in error_of(answer)


def test_many_problems_are_counted(ask):
    answer = ask([{"history": 1, "k": 0}] * 9, **SMALL | {"max_batch": 9})
    assert error_of(answer).endswith("; 13 more such places.")


def test_the_place_where_json_ends_is_named(ask):
    answer = ask(content=b'{"history":', headers={"Content-Type": "application/json"})
    assert error_of(answer) == "the body: no JSON from character 11 (Expecting value)."


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_that_is_not_called_json_is_told_its_header(ask, headers):
    answer = ask(content=json.dumps({"history": HISTORY}).encode(), headers=headers)
    given = "the Content-Type 'application/x-www-form-urlencoded'" if headers else "no Content-Type"
    assert (answer.status_code, error_of(answer)) == (422, f"The body has {given}; send JSON as 'application/json'.")


def test_an_address_with_a_slash_behind_it_is_unknown(ask):
    answer = ask(path="/v1/catalog/", method="GET")
    assert answer.status_code == 404 and error_of(answer) == "GET /v1/catalog/: Not Found."


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"history": ["\\ud800"]}', b'{"k": 1e999}', b"[" * 3000])
def test_what_is_no_json_is_refused(ask, content):
    answer = ask(content=content, headers={"Content-Type": "application/json"}, **SMALL | {"max_body_kib": 9})
    assert answer.status_code in (400, 422) and error_of(answer).endswith(".")
    assert answer.status_code == 422 or error_of(answer) == "The body cannot be read as JSON in UTF-8."


def test_a_body_of_another_type_is_refused(ask):
    """A page of another site can send text without asking the browser's leave, but no JSON."""
    answer = ask(content=json.dumps({"history": HISTORY}), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422


def test_a_large_body_is_refused(ask):
    answer = ask({"history": ["item-1"] * 200}, **SMALL)
    assert answer.status_code == 413 and error_of(answer) == "The body is larger than 1 KiB; send less."


def test_a_large_body_of_unknown_length_is_refused_before_its_end(client):
    sent = 0

    async def pieces():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 512

    async def run():
        async with client(**SMALL) as connected:
            return await connected.post("/v1/recommend", content=pieces())

    assert asyncio.run(run()).status_code == 413
    assert sent == 3


def test_a_slow_body_is_refused(client):
    async def pieces():
        yield b"{"
        await asyncio.sleep(5)

    async def run():
        async with client(receive_s=0.05) as connected:
            return await connected.post("/v1/recommend", content=pieces())

    answer = asyncio.run(run())
    assert answer.status_code == 408 and error_of(answer) == "The body did not arrive within 0.05 s; send it at once."


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/recommend", 405), ("POST", "/v1/nothing", 404), ("PUT", "/health", 405)]
)
def test_other_routes_and_methods_are_refused_in_the_same_form(ask, method, path, status):
    answer = ask(path=path, method=method)
    assert answer.status_code == status and error_of(answer).startswith(f"{method} {path}: ")


def test_the_openapi_description_has_the_bounds(ask):
    schema = ask(path="/openapi.json", method="GET", **SMALL).json()
    fields = schema["components"]["schemas"]["Request"]["properties"]
    assert fields["history"]["maxItems"] == 3 and fields["k"]["maximum"] == 5
    responses = schema["paths"]["/v1/recommend"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "403", "408", "413", "422", "429", "500", "503", "504"}
    assert all("examples" in r["content"]["application/json"] or "example" in r["content"]["application/json"]
               for r in responses.values())  # fmt: skip


def test_every_limit_is_in_this_file():
    elsewhere = {"max_wait_ms", "max_queue", "deadline_s"}  # test_queue.py
    assert {field.name for field in dataclasses.fields(Limits)} == {*SMALL, "receive_s", *elsewhere}


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="max_queue is 8, less than max_batch = 16"):
        ServeConfig(model="m", max_queue=8, max_batch=16)
