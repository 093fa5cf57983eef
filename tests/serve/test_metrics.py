"""GET /metrics: what Prometheus is told."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from tests.serve.conftest import HISTORY


def test_requests_batches_and_the_model_are_counted(client, serving, generation):
    service = serving(max_queue=64)

    async def run() -> str:
        async with client(service) as connected:
            await connected.post("/v1/recommend", json=[{"history": HISTORY}, {"history": []}, {"history": ["?"]}])
            await connected.post("/v1/recommend", json={"history": HISTORY, "allow": ["item-3"], "num_beams": 12})
            await connected.post("/v1/recommend", json={"history": HISTORY, "k": 0})
            await connected.get("/nothing")
            return (await connected.get("/metrics")).text

    families = text_string_to_metric_families(asyncio.run(run()))
    found = {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}
    assert found["llmrec_requests_total", "/v1/recommend", "200"] == 2
    assert found["llmrec_requests_total", "/v1/recommend", "422"] == 1
    assert found["llmrec_requests_total", "404", "other"] == 1
    assert found["llmrec_request_seconds_count", "/v1/recommend"] == 3
    assert found[("llmrec_queue_seconds_count",)] == found[("llmrec_batch_users_count",)] == 2
    assert found[("llmrec_batch_users_sum",)] == 4 and found[("llmrec_num_beams_sum",)] == 12
    assert found["llmrec_fallback_total", "empty"] == found["llmrec_fallback_total", "unknown"] == 1
    assert found[("llmrec_short_total",)] == 1 and found[("llmrec_queue_users",)] == 0
    assert found["llmrec_model_info", *sorted([generation.model_sha256, generation.sid_table_sha256])] == 1
    assert found[("llmrec_catalog_items",)] == 12 and found[("llmrec_generation",)] == generation.number


def test_a_client_that_went_away_is_counted_as_499(running):
    server = running()
    server.hold()
    connection = server.connect()
    connection.sendall(
        b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 23\r\n\r\n{"history": ["item-1"]}'
    )
    while not server.service.waiting:
        pass
    connection.close()
    while not (text := server.service.metrics.text()).count(b'code="499"'):
        pass
    assert b'llmrec_requests_total{code="499",route="/v1/recommend"} 1.0' in text
