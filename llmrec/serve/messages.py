"""Requests and answers of the service, with their bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_ID = 256  # characters of an item_id

ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class Message(BaseModel):
    """Base of all messages: nothing is converted, and an unknown key is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Request(Message):
    """A user who wants items; the words are those of `Recommender.recommend`."""

    history: list[ItemId] = Field(description="item_ids, oldest first; the latest ones are read")
    k: int = Field(10, ge=1, description="number of items")
    exclude: Literal["seen"] | list[ItemId] | None = Field(
        "seen", description="'seen' bars the items of the history, a list bars these beside them, null bars nothing"
    )
    allow: list[ItemId] | None = Field(None, description="the only items that may be recommended")
    unknown: Literal["error", "skip"] = Field("skip", description="refuse unknown item_ids, or leave them out")
    min_new: int = Field(0, ge=0, description="least number of items without training interactions")
    num_beams: int | None = Field(None, ge=1, description="beam width, at least k")


class Item(Message):
    """A recommended item."""

    item_id: str
    score: float
    title: str | None


class Recommendation(Message):
    """Items for a user, best first."""

    items: list[Item]
    unknown: list[str]
    fallback: bool
    model: str
    sid_table: str
