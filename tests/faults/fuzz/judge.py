"""What came of an input: it was finished and is right, refused in a sentence, or it shows a defect.

A judge of a kind raises `Wrong` where a result differs from what an independent, slow computation makes of the input.
"""

from __future__ import annotations

import contextlib
import io
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.cli import main
from llmrec.runtime.errors import is_ours

FINISHED, ACCEPTED, REFUSED, CRASHED, WRONG = "finished", "accepted", "refused", "crashed", "wrong"
DEFECTS = (CRASHED, WRONG)
SHORTEST = 25  # characters; what is shorter names no remedy


class Wrong(AssertionError):
    """A result that does not follow from the input: an invalid item, or a repair that nobody was told of."""


class Accepted(SystemExit):
    """Raised in the place of long work, once the input has passed every check before it; the command lets it pass."""


class Refused(Exception):
    """A command that ended with a sentence and status 2."""


@dataclass
class Case:
    """One input.

    Attributes:
        mutations: Number of changes to a valid input; None for one that was never valid.
        run: Runs it and judges its result.
        shown: Text that describes it to a person.
    """

    mutations: int | None
    run: Callable[[], None]
    shown: str = ""


@dataclass
class Tally:
    """Counts of inputs, and the seeds of those that show a defect."""

    outcomes: Counter[str] = field(default_factory=Counter)
    mutations: Counter[str] = field(default_factory=Counter)
    defects: dict[int, str] = field(default_factory=dict)

    def add(self, seed: int, case: Case, outcome: str, told: str) -> None:
        """Count one input."""
        self.outcomes[outcome] += 1
        self.mutations["none" if case.mutations is None else str(case.mutations)] += 1
        if outcome in DEFECTS:
            self.defects[seed] = f"{outcome}: {told}"

    @property
    def count(self) -> int:
        """Number of inputs."""
        return sum(self.outcomes.values())


def judge(case: Case) -> tuple[str, str]:
    """Run a case.

    Returns:
        Outcome, and what was told of it: the message of a refusal, or the traceback of a defect.
    """
    try:
        case.run()
        return FINISHED, ""
    except Accepted:
        return ACCEPTED, ""
    except Wrong as error:
        return WRONG, f"{error}\n{case.shown}"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        message = str(error)
        is_sentence = isinstance(error, Refused) or (
            isinstance(error, ValueError | ModuleNotFoundError | OSError)
            and (is_ours(error) or (isinstance(error, OSError) and error.filename is not None))
        )
        if is_sentence and len(message) >= SHORTEST and "Traceback" not in message:
            return REFUSED, message
        return CRASHED, "".join(traceback.format_exception(error)[-12:]) + case.shown


def command(argv: list[str]) -> str:
    """Run a command in this process.

    Returns:
        What it printed on stdout.

    Raises:
        Refused: If it ended with status 2 and a message.
        RuntimeError: If it ended in any other way.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except Accepted:
            raise
        except SystemExit as stop:  # argparse
            status = stop.code
    if status == 0:
        return out.getvalue()
    said = err.getvalue()
    lines = [line for line in said.splitlines() if line.startswith("llmrec")]
    if status == 2 and lines and "Traceback" not in said and "did not foresee" not in said:
        raise Refused(lines[-1])
    raise RuntimeError(f"status {status}: {said[-1500:]}\n{_log_of(said)}")


def _log_of(said: str) -> str:
    """Last lines of the log that a message names."""
    name = next((word.rstrip(",") for word in said.split() if word.rstrip(",").endswith(".error.log")), None)
    if name is None or not Path(name).is_file():
        return ""
    text = Path(name).read_text(encoding="utf-8")
    Path(name).unlink()
    return text[-3000:]
