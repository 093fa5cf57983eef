"""Options of `llmrec serve`, and the limits of what a request may ask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llmrec.configs.options import Config, option
from llmrec.configs.recommend import RANK_HELP, RankBy

API_KEY, ADMIN_TOKEN = "LLMREC_API_KEY", "LLMREC_ADMIN_TOKEN"  # environment variables
SITE = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?")


@dataclass(kw_only=True)
class Limits(Config):
    """Bounds of requests and of the queue; whatever is beyond them is refused before the model sees it."""

    max_batch: int = option(
        "Largest number of users that the model answers together, and of those in one request.", 64, least=1
    )
    max_wait_ms: float = option("Milliseconds that a request waits for others to join its batch.", 3, least=0, most=100)
    max_queue: int = option(
        "Number of users that may wait, as long as they expect to wait for half of `deadline_s` at most; further "
        "requests are refused with 429.",
        512,
        least=1,
    )
    deadline_s: float = option("Seconds after which a request that was not answered is refused with 504.", 10, above=0)
    max_k: int = option("Largest `k` of a request.", 100, least=1)
    max_beams: int = option("Largest `num_beams` of a request.", 500, least=1)
    max_history: int = option("Largest number of items in the history of a request.", 1000, least=1)
    max_items: int = option("Largest number of items in `exclude` or `allow` of a request.", 10_000, least=1)
    max_body_kib: int = option("Largest body of a request in KiB.", 1024, least=1)
    receive_s: float = option(
        "Seconds within which the head of a request, and then its body, must arrive.", 10, above=0
    )

    def problems(self) -> list[str]:
        """List the limits that contradict each other."""
        if self.max_queue < self.max_batch:
            return [f"max_queue is {self.max_queue}, less than max_batch = {self.max_batch}; let a whole batch wait"]
        return super().problems()


@dataclass(kw_only=True)
class ServeConfig(Limits):
    """Answer requests for recommendations over HTTP."""

    model: str = option("Directory or Hub id of the checkpoint.")
    catalog: str | None = option(
        "Directory written by `llmrec prepare`: the model's catalogue or a later one. Only items that it has are "
        "recommended, under their titles.",
        None,
    )
    pictures: str | None = option(
        "Column of `catalog` with the addresses of pictures, which the page then loads from there.", None
    )
    framed_by: str | None = option(
        "Site that may show the page in a frame, such as https://huggingface.co; none by default.",
        None,
    )
    rank: RankBy = option(RANK_HELP, "sid")
    device: str = option("Device of the model: auto, cpu or cuda. A process serves one GPU.", "auto")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "Type of the weights; auto is bfloat16 on a GPU that has it, and float32 elsewhere.", "auto"
    )
    compile: bool = option(
        "Fuse the model's layers by `torch.compile`, on a GPU; it starts a minute later and answers faster.",
        False,
    )
    host: str = option(
        f"Address to listen on. One that other machines can reach needs an API key ({API_KEY}), or `anonymous`.",
        "127.0.0.1",
    )
    port: int = option("Port to listen on; 0 takes a free one.", 8000, least=0, most=65535)
    anonymous: bool = option("Answer everybody who can reach `host`, without an API key.", False)
    admin_dir: str | None = option(
        f"Directory with the checkpoints, catalogues and semantic IDs that administrators ({ADMIN_TOKEN}) may name "
        "in requests, and in which appended checkpoints and the list of removed items are written.",
        None,
    )

    def problems(self) -> list[str]:
        """List what contradicts itself, and a site that is none."""
        if self.framed_by is not None and SITE.fullmatch(self.framed_by) is None:
            return [f"framed_by is '{self.framed_by}'; give a site without a path, such as https://huggingface.co"]
        return super().problems()
