"""The alignment tasks of `llmrec sft`: a table of prompts that tie semantic IDs to titles, descriptions and categories.

`llmrec.training.tasks` turns the table into training examples. It stands here, without further imports, because the
options are checked against its names.

Departures from LC-Rec and MiniOneRec: the wording of the prompts is our own, and no text is written by another LLM.

Source: tasks of LC-Rec (arXiv:2311.09049) and MiniOneRec (arXiv:2510.24431).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SLOT = "{given}"  # place of a template where the given item, history or category is inserted


@dataclass(frozen=True)
class Task:
    """One kind of question.

    Args:
        given: Kind of text that the prompt shows.
        answer: Kind of text that the model learns to give.
        templates: Wordings of the prompt; one is drawn for each example.
        of_history: True if the question asks for the item after a training history, False if it is about one item.
    """

    given: Literal["sid", "title", "description", "category"]
    answer: Literal["sid", "title"]
    templates: tuple[str, ...]
    of_history: bool = False


TASKS = {
    "sid_to_title": Task("sid", "title", (
        "What is the item {given} called? Its title:",
        "The title of the item with the semantic ID {given}:",
        "Name this item: {given}. It is",
    )),
    "title_to_sid": Task("title", "sid", (
        "Which semantic ID has the item {given}? Its semantic ID:",
        "Title: {given}. Semantic ID:",
        "Find the item with the title {given}:",
    )),
    "titles_to_sid": Task("title", "sid", (
        "A user with this history, oldest first: {given}. The semantic ID of the next item:",
        "Items that a user chose one after another: {given}. The item after them:",
        "Recommend the next item, as a semantic ID, after {given}:",
    ), of_history=True),
    "sids_to_title": Task("sid", "title", (
        "A user with this history, oldest first: {given}. The title of the next item:",
        "Items that a user chose one after another: {given}. The next one is called",
        "Recommend the next item, by its title, after {given}:",
    ), of_history=True),
    "description_to_sid": Task("description", "sid", (
        "An item is described as follows: {given}. Its semantic ID:",
        "Which item is this? {given}. Semantic ID:",
        "Find the item that fits this description: {given}. It is",
    )),
    "category_to_sids": Task("category", "sid", (
        "Some items of {given}, as semantic IDs:",
        "Recommend a few items of the kind {given}:",
        "Which items belong to {given}? For example",
    )),
}  # fmt: skip
