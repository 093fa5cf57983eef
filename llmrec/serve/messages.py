"""Requests and answers of the service: their keys, their bounds and examples of them.

Nothing is converted: `"k": "5"` is refused. So is a key that does not exist, since a filter would be lost.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from llmrec.configs.serve import Limits

MAX_ID = 256  # characters of an item_id
MAX_CONDITIONS, MAX_CONDITION = 10, 500  # number, and characters of one
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Condition = Annotated[str, Field(min_length=1, max_length=MAX_CONDITION)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
SHA = "c0ffee" * 10 + "beef"


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Request(Message):
    """A user who wants items, in the words of `Recommender.recommend`."""

    history: list[ItemId] = Field(
        description="item_ids, oldest first; the latest ones are read. Without any known item, popular items are given."
    )
    k: int = Field(10, ge=1, description="Number of items.")
    exclude: Literal["seen"] | list[ItemId] | None = Field(
        "seen", description="'seen' bars the items of the history, a list bars these beside them, null bars nothing."
    )
    allow: list[ItemId] | None = Field(None, description="The only items that may be recommended; null for all.")
    where: list[Condition] = Field(
        [], max_length=MAX_CONDITIONS, description="SQL conditions on the columns of the catalogue; all must be met."
    )
    max_popularity: int | None = Field(
        None, ge=0, le=2**53, description="Most training interactions that an item may have; null for any number."
    )
    rank: Literal["sid", "items", "mixture"] | None = Field(
        None, description="Scores to rank by, if items have rows in the model; null for those of the service."
    )
    unknown: Literal["skip", "error"] = Field(
        "skip", description="Leave unknown item_ids out and name them in the answer, or refuse the request."
    )
    min_new: int = Field(0, ge=0, description="Least number of items without training interactions.")
    num_beams: int | None = Field(None, ge=1, description="Beam width, at least k; null for that of the model.")

    @property
    def is_filtered(self) -> bool:
        """True if items must meet conditions."""
        return bool(self.where) or self.max_popularity is not None


class Item(Message):
    """An item and its score."""

    item_id: str
    score: float = Field(description="Log-probability.")
    title: str | None = Field(description="Null if the service has no catalogue.")


class Recommendation(Message):
    """Items for a user, best first."""

    items: list[Item]
    unknown: list[str] = Field(description="item_ids of the request that were left out.")
    fallback: bool = Field(description="True if no item of the history is known, and the items are popular ones.")
    model: str = Field(description="SHA-256 of the checkpoint's llmrec.json.")
    sid_table: str = Field(description="SHA-256 of the semantic IDs.")


class Error(Message):
    """One sentence about what is wrong."""

    code: str
    message: str


class ErrorAnswer(Message):
    """Answer without items."""

    error: Error


class Status(Message):
    """A word on the state of the service."""

    status: str


class Version(Message):
    """Model and catalogue that answer at the moment."""

    llmrec: str
    generation: int = Field(description="1 for what the service started with, and one more after every change.")
    model: str
    sid_table: str
    items: int = Field(description="Number of items that may be shown.")


class Reload(Message):
    """Names of directories in `admin_dir`; what is null is read again from where it came from."""

    model: Name | None = Field(None, description="Checkpoint.")
    catalog: Name | None = Field(None, description="Catalogue.")


class Append(Message):
    """Names of directories in `admin_dir`."""

    sid: Name = Field(description="Result of `llmrec tokenize --append` on the semantic IDs of the checkpoint.")
    out: Name = Field(description="New checkpoint, which is written.")
    catalog: Name | None = Field(None, description="Catalogue with the new items; null for that of before.")


class Remove(Message):
    """Items that are not shown any more."""

    item_ids: list[ItemId] = Field(min_length=1, max_length=10_000)


EXAMPLE = {"history": ["1300854", "0816711"], "k": 2, "exclude": "seen"}
ANSWER = {
    "items": [
        {"item_id": "0770828", "score": -2.1, "title": "Man of Steel (2013)"},
        {"item_id": "1408101", "score": -2.6, "title": "Star Trek Into Darkness (2013)"},
    ],
    "unknown": [],
    "fallback": False,
    "model": SHA,
    "sid_table": SHA,
}


def bounded_request(limits: Limits) -> type[Request]:
    """Request whose fields have the bounds of a service."""

    explained = {name: field.description for name, field in Request.model_fields.items()}
    ids: Any = Annotated[list[ItemId], Field(max_length=limits.max_items)]
    beams: Any = Annotated[int, Field(ge=1, le=limits.max_beams)]
    fields: dict[str, Any] = {
        "history": (list[ItemId], Field(max_length=limits.max_history, description=explained["history"])),
        "k": (int, Field(10, ge=1, le=limits.max_k, description=explained["k"])),
        "exclude": (Literal["seen"] | ids | None, Field("seen", description=explained["exclude"])),
        "allow": (ids | None, Field(None, description=explained["allow"])),
        "min_new": (int, Field(0, ge=0, le=limits.max_k, description=explained["min_new"])),
        "num_beams": (beams | None, Field(None, description=explained["num_beams"])),
    }
    bounded: Any = create_model("Request", __base__=Request, __doc__=Request.__doc__, **fields)
    return bounded


def one_or_list(limits: Limits) -> Any:
    """Type of a body: one request, or a list of as many as a batch takes."""
    one = bounded_request(limits)
    several = Annotated[list[one], Field(min_length=1, max_length=limits.max_batch)]  # type: ignore[valid-type]
    choose = Discriminator(lambda value: "list" if isinstance(value, list) else "one")
    return Annotated[Annotated[one, Tag("one")] | Annotated[several, Tag("list")], choose]


PLAIN = {  # what pydantic says in words of Python
    "extra_forbidden": "there is no such key",
    "missing": "it is missing",
    "model_attributes_type": "input should be an object",
    "string_pattern_mismatch": "give a name of letters, digits, '.', '_' and '-'",
}


def sentence(errors: list[dict[str, Any]]) -> str:
    """One sentence with the first problems of a body, each under its place."""
    problems: dict[str, list[str]] = {}
    for error in errors:
        path = [str(part) for part in error["loc"][1:] if part not in ("one", "list")]
        place = ".".join(part for part in path if "[" not in part)  # without the kinds that were tried
        what = PLAIN.get(error["type"], error["msg"]).replace(" after validation", "")
        if error["type"] == "json_invalid":
            place, what = "", f"no JSON from character {error['loc'][-1]} ({error['ctx']['error']})"
        problems.setdefault(place or "the body", []).append(what[:1].lower() + what[1:])
    more = f"; {len(problems) - 5} more such places" if len(problems) > 5 else ""
    shown = [f"{place[:80]}: {' or '.join(dict.fromkeys(each))}"[:300] for place, each in list(problems.items())[:5]]
    return "; ".join(shown) + more + "."
