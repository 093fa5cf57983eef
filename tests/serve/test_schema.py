"""The OpenAPI description holds for requests that schemathesis makes up from it: no 5xx, no answer of another form.

pip install schemathesis    # into an environment of its own; LLMREC_SCHEMATHESIS names its command
LLMREC_CASES=6500 pytest -m slow -n0 tests/serve/test_schema.py    # about 20,000 requests
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request

import pytest

from llmrec.serve.gate import Access
from llmrec.serve.messages import MAX_ID
from llmrec.sid.table import SidTable

KEY, TOKEN = "a-long-enough-api-key", "a-long-enough-admin-token"
COMMAND = os.environ.get("LLMREC_SCHEMATHESIS", "schemathesis")
CASES = int(os.environ.get("LLMREC_CASES", "100"))  # drawn for each route, beside those that cover the bounds
# The description cannot say all that refuses a request (an unknown item, num_beams below k), nor list other methods.
CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance,unsupported_method,allow_header_conformance"]

# A wrong body may be too large as well; in a query everything is text, so that `item_id=false` is a list.
CONFIG = """
[checks]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 413, 422, 429]

[[operations]]
include-name = "GET /v1/items"
checks.negative_data_rejection.enabled = false
"""

# Made-up text is never an item, and an unknown item has no explanation, so three in four item_ids become known ones;
# those that break the bounds of an item_id stay, as the request has to be refused.
HOOKS = """
import zlib
import schemathesis

ITEMS = {items!r}


def known(value, is_id=False):
    if isinstance(value, dict):
        return {{key: known(each, key in ("history", "item_id", "exclude", "allow")) for key, each in value.items()}}
    if isinstance(value, list):
        return [known(each, is_id) for each in value]
    drawn = zlib.crc32(repr(value).encode())
    is_id = is_id and isinstance(value, str) and 0 < len(value) <= {longest} and value != "seen"
    return ITEMS[drawn % len(ITEMS)] if is_id and drawn % 4 else value


@schemathesis.hook
def map_body(context, body):
    return known(body)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("routes", "key", "cases"), [("exclude", KEY, CASES), ("include", TOKEN, min(CASES, 25))])
def test_no_made_up_request_breaks_the_service(running, tuned, tmp_path, routes, key, cases):
    if shutil.which(COMMAND) is None:
        pytest.skip("schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS.format(items=[*SidTable.load(tuned).item_ids[:7]], longest=MAX_ID))
    server = running(access=Access(KEY, TOKEN), admin_dir=str(tmp_path))
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    command = [COMMAND, "run", url, f"--{routes}-path-regex", "/v1/catalog:", "-H", f"Authorization: Bearer {key}",
               "-n", str(cases), "--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color",
               "--request-timeout", "60", "--max-response-time", "60", *CHECKS]  # fmt: skip
    if routes == "include":  # the description itself needs the API key
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
        (tmp_path / "openapi.json").write_bytes(urllib.request.urlopen(asked).read())
        command[2] = str(tmp_path / "openapi.json")
        command += ["--url", f"http://127.0.0.1:{server.port}"]
    hooked = os.environ | {"SCHEMATHESIS_HOOKS": str(tmp_path / "hooks.py")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=hooked)
    counted = re.search(r"([\d,]+) generated", done.stdout)
    print(counted[0] if counted else done.stdout[-2000:])
    text = server.service.metrics.text().decode()
    print(*re.findall(r"llmrec_requests_total\{.*", text), sep="\n")
    assert 'code="5' not in text
    failures = [line[:500] for line in done.stdout[done.stdout.find("= FAILURES") :].splitlines()]
    assert done.returncode == 0, "\n".join(failures)
