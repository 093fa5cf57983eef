"""Administration: changes of what answers, one at a time, without a lost request.

A new generation is loaded beside the one that answers, warmed up between its batches, and takes over by one
assignment. Requests that wait are answered by the generation that has read them. Names in requests are those of
directories in `admin_dir`; no other path is read or written.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from llmrec.configs.serve import ADMIN_TOKEN, API_KEY
from llmrec.runtime.manifest import read_json, write_json
from llmrec.serve.generation import Generation
from llmrec.serve.messages import Append, Reload
from llmrec.serve.refusals import Refusal
from llmrec.serve.service import Service

REMOVED = "removed.json"  # item_ids that are not shown


def read_removed(admin_dir: str | None) -> frozenset[str]:
    """Read the items that are not to be shown; none without a directory or a list."""
    path = None if admin_dir is None else Path(admin_dir) / REMOVED
    if path is None or not path.is_file():
        return frozenset()
    return frozenset(read_json(path))


class Administration:
    """Changes of the generation of a service.

    Args:
        service: The service.
        admin_dir: Directory with what may be named; None allows only what names nothing.
    """

    def __init__(self, service: Service, admin_dir: str | None):
        self.service, self.admin_dir = service, admin_dir
        self._changing = asyncio.Lock()

    async def reload(self, request: Reload) -> Generation:
        """Load model and catalogue, anew or by other names, and let them answer.

        Raises:
            Refusal: If another change is under way, or they are not usable.
        """
        async with self._change():
            return await self._load(request.model, request.catalog)

    async def append(self, request: Append) -> Generation:
        """Write a checkpoint that knows the items of an appended SID table, and let it answer.

        Raises:
            Refusal: If another change is under way, or the table was not appended to that of the model.
        """
        async with self._change():
            sid, out = self._present("sid", request.sid), self._path(request.out)
            model = str(self.service.generation.recommender.directory)
            command = ["extend", "--sid", str(sid), "--model", model, "--out", str(out)]
            with refused_if_wrong():
                await asyncio.to_thread(run_stage, command)
            return await self._load(request.out, request.catalog)

    async def remove(self, item_ids: Sequence[str]) -> Generation:
        """Show some items no more, and remember them in `admin_dir` across restarts.

        Raises:
            Refusal: If another change is under way, an item is unknown, or nothing would be left.
        """
        async with self._change():
            generation = self.service.generation
            unknown = [each for each in item_ids if each not in generation.recommender.table.row_of]
            if unknown:
                raise Refusal(
                    422, f"{len(unknown)} of the items are unknown, first {unknown[0]!r}; nothing was removed."
                )
            with refused_if_wrong():
                smaller = generation.without(item_ids)
            if self.admin_dir is not None:
                write_json(Path(self.admin_dir) / REMOVED, sorted(smaller.removed))
            self.service.swap(smaller)
            return smaller

    async def rollback(self) -> Generation:
        """Go back to the generation of before; a second time undoes the first. Items that were removed stay removed.

        Raises:
            Refusal: If another change is under way, or there was none before.
        """
        async with self._change():
            previous = self.service.previous
            if previous is None:
                raise Refusal(409, "There is no generation to go back to; the service has loaded one only.")
            removed = self.service.generation.removed
            with refused_if_wrong():
                older = previous.without(removed) if removed - previous.removed else previous
            self.service.swap(older)
            return older

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        if self._changing.locked():
            raise Refusal(409, "Another change is under way; try again when it is done.")
        async with self._changing:
            yield

    async def _load(self, model: str | None, catalog: str | None) -> Generation:
        config = self.service.generation.config
        model = config.model if model is None else str(self._present("model", model))
        catalog = config.catalog if catalog is None else str(self._present("catalog", catalog))
        changed = dataclasses.replace(config, model=model, catalog=catalog)
        removed = read_removed(self.admin_dir) if self.admin_dir else self.service.generation.removed
        with refused_if_wrong():
            generation = await asyncio.to_thread(Generation.load, changed, removed)
        await self.service.warm_up(generation)
        self.service.swap(generation)
        return generation

    def _path(self, name: str) -> Path:
        if self.admin_dir is None:
            raise Refusal(403, "Directories cannot be named; start the service with --admin-dir.")
        return Path(self.admin_dir) / name

    def _present(self, key: str, name: str) -> Path:
        path = self._path(name)
        if not path.is_dir():  # "models/shop", which is not there, would be fetched from the Hub
            raise Refusal(422, f"{key} is {name!r}, which admin_dir does not have; put the directory there.")
        return path


@contextmanager
def refused_if_wrong() -> Iterator[None]:
    """Refuse a change that fails, in the words of its error.

    Raises:
        Refusal: If the block raises a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise Refusal(422, f"{error} What answered before still does.") from None


def run_stage(arguments: Sequence[str]) -> None:
    """Run a stage of llmrec as a process of its own, which takes no time of the service's threads.

    Raises:
        ValueError: If it fails, with its last line.
    """
    environment = {name: value for name, value in os.environ.items() if name not in (API_KEY, ADMIN_TOKEN)}
    command = [sys.executable, "-m", "llmrec", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().split("\n")
        raise ValueError(lines[-1][:1000])
