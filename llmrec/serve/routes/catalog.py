"""POST /v1/catalog:reload, :append, :remove and :rollback: change what answers, with the admin token."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from fastapi import APIRouter

from llmrec.serve.administration import Administration
from llmrec.serve.generation import Generation
from llmrec.serve.messages import Append, ErrorAnswer, Reload, Remove, Version
from llmrec.serve.refusals import documented
from llmrec.serve.routes.state import version_of


def router(administration: Administration) -> APIRouter:
    """Make the routes."""
    refused = documented(ErrorAnswer, 400, 408, 409, 413, 422, 503)
    routes = APIRouter(prefix="/v1", tags=["catalogue"], responses=refused)

    @routes.post("/catalog:reload", response_model=Version)
    async def reload(body: Reload) -> Version:
        """Load model and catalogue again, or others, and let them answer."""
        return await changed(administration.reload(body))

    @routes.post("/catalog:append", response_model=Version)
    async def append(body: Append) -> Version:
        """Add the items of an appended SID table to a new checkpoint, and let it answer."""
        return await changed(administration.append(body))

    @routes.post("/catalog:remove", response_model=Version)
    async def remove(body: Remove) -> Version:
        """Show some items no more."""
        return await changed(administration.remove(body.item_ids))

    @routes.post("/catalog:rollback", response_model=Version)
    async def rollback() -> Version:
        """Go back to what answered before."""
        return await changed(administration.rollback())

    return routes


async def changed(change: Coroutine[None, None, Generation]) -> Version:
    """Bring a change to its end, also if its client goes away."""
    return version_of(await asyncio.shield(asyncio.ensure_future(change)))
