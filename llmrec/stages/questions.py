"""The two questions of `llmrec run`, asked where a file does not tell and the user has not said.

They are asked on a terminal only. Elsewhere nobody can answer, so the run is refused with the option that answers.
"""

from __future__ import annotations

import dataclasses
import sys

from llmrec.configs import RunConfig
from llmrec.data.columns import ITEM_ID, TIMESTAMP, USER_ID
from llmrec.data.intake.choose import choose, shown
from llmrec.data.intake.files.opened import open_rows
from llmrec.data.intake.files.rows import Rows
from llmrec.runtime.terminal import inert

TRIES = 3
IN_ORDER = "order"


def answered(config: RunConfig) -> RunConfig:
    """Options in which the columns of the log are known.

    Args:
        config: Options of the run.

    Returns:
        The same options, with answers where there were questions.

    Raises:
        ValueError: If the columns are not known and nobody answers, or the log cannot be read.
    """
    if config.interactions is None:
        return config
    rows = open_rows(config.interactions, config.separator)
    try:
        choose(rows, {USER_ID: config.user_column, ITEM_ID: config.item_column})
    except ValueError as problem:
        _check_terminal(problem)
        user, item = _ask(rows, "Which columns are the user and the item? Two names: ", 2)
        config = dataclasses.replace(config, user_column=user, item_column=item)
        _say_option(f"--user-column {user} --item-column {item}")
    if config.order_only or rows.order_only:
        return config
    try:
        choose(rows, {TIMESTAMP: config.timestamp_column})
    except ValueError as problem:
        _check_terminal(problem)
        question = f"Which column is the time? '{IN_ORDER}' if there is none and the rows of each user are in order: "
        (time,) = _ask(rows, question, 1, IN_ORDER)
        if time == IN_ORDER:
            config = dataclasses.replace(config, order_only=True)
            _say_option("--order-only")
        else:
            config = dataclasses.replace(config, timestamp_column=time)
            _say_option(f"--timestamp-column {time}")
    return config


def _check_terminal(problem: ValueError) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise problem


def _ask(rows: Rows, question: str, count: int, *also: str) -> list[str]:
    """Ask for names of columns until there are as many as wanted.

    Raises:
        ValueError: If none of a few answers is usable, or the input ends.
    """
    print(inert(f"{rows.path} has the columns {shown(rows.names)}."), file=sys.stderr)
    for _ in range(TRIES):
        print(question, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        names = [line.strip()] if count == 1 else line.replace(",", " ").split()
        unknown = [name for name in names if name not in rows.names and name not in also]
        if len(set(names)) == count and len(names) == count and not unknown:
            return names
        wrong = f"there is no {', '.join(map(repr, unknown))}" if unknown else f"give {count} of them"
        print(inert(f"{wrong}; the columns are {shown(rows.names)}."), file=sys.stderr)
    raise ValueError(
        f"the columns of {rows.path} are not known; name them with --user-column, --item-column and "
        "--timestamp-column, or give --order-only where there are no times."
    )


def _say_option(option: str) -> None:
    print(inert(f"So it is {option}; with that, nothing is asked."), file=sys.stderr)
