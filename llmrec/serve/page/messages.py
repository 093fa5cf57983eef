"""Requests and answers of the routes that the page needs beside /v1/recommend."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, create_model

from llmrec.configs.serve import Limits
from llmrec.serve.messages import SHA, ItemId, Message, Request, bounded_request

MOST_BRANCHES = 20


class DescribedItem(Message):
    """An item as a person is told of it."""

    item_id: str
    title: str | None
    sid: list[str] = Field(description="Tokens of its semantic ID, level by level.")
    popularity: int | None = Field(description="Training interactions; null if the checkpoint does not know them.")
    fields: dict[str, Any] = Field(description="Other columns of the catalogue; long values are cut.")
    picture: str | None = Field(description="Address of a picture; null unless the service was started with pictures.")


class ItemsAnswer(Message):
    """Items that were found."""

    items: list[DescribedItem]


class Column(Message):
    """A column that `where` may name."""

    name: str
    kind: Literal["number", "text", "list", "boolean"]
    values: list[str] | None = Field(None, description="Commonest values of text.")
    least: float | None = Field(None, description="Least number.")
    most: float | None = Field(None, description="Largest number.")


class Popularity(Message):
    """Most training interactions of an item within a share of the catalogue, the less popular one."""

    share: float
    interactions: int


class CatalogAnswer(Message):
    """Description of what the items can be filtered and ranked by."""

    items: int = Field(description="Number of items that may be shown.")
    has_titles: bool
    ranks: list[str] = Field(description="Scores that `rank` may name, those of the service first.")
    columns: list[Column]
    popularity: list[Popularity]
    max_k: int
    max_history: int


class NamedItem(Message):
    """An item and its title."""

    item_id: str
    title: str | None


class Branch(Message):
    """One code that may follow a prefix."""

    token: str
    code: int
    probability: float
    num_items: int = Field(description="Items below it that could have been recommended.")
    examples: list[NamedItem]


class Fork(Message):
    """One level of the path to the item."""

    chosen: Branch
    mass: float = Field(description="Probability of the path up to and including the chosen code.")
    others: list[Branch]
    num_more: int
    more_probability: float


class Influence(Message):
    """An item of the history that the model has read."""

    item_id: str
    title: str | None
    shared_levels: int = Field(description="Codes, from the first, that both semantic IDs have in common.")
    changes: dict[str, float] | None = Field(description="Scores minus those without this item; null for the only one.")


class ExplainAnswer(Message):
    """Reasons of a recommendation, as `Recommender.explain` gives them."""

    item_id: str
    title: str | None
    rank: str
    scores: dict[str, float]
    path: list[Fork]
    history: list[Influence]
    model: str
    sid_table: str


EXAMPLE = {"history": ["1300854", "0816711"], "item_id": "0770828"}
ANSWER = {
    "item_id": "0770828",
    "title": "Man of Steel (2013)",
    "rank": "sid",
    "scores": {"sid": -0.69},
    "path": [],
    "history": [{"item_id": "1300854", "title": "Iron Man 3", "shared_levels": 1, "changes": {"sid": 0.41}}],
    "model": SHA,
    "sid_table": SHA,
}


def explain_request(limits: Limits) -> type[Request]:
    """Make the request that was answered, with the item whose reasons are wanted.

    `k`, `min_new`, `num_beams` and `rank` are taken, so that the request can be sent as it was; no score depends on
    them.
    """
    return create_model(
        "ExplainRequest",
        __base__=bounded_request(limits),
        __doc__="The request that was answered, and the item whose reasons are wanted.",
        item_id=(ItemId, Field(description="The recommended item.")),
        num_branches=(int, Field(4, ge=0, le=MOST_BRANCHES, description="Other codes that are listed at each level.")),
    )
