"""Things that may reach a terminal: text without effects, and nothing of what libraries print.

The standard library suffices, so that `llmrec --help` need not import rich.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

# Read by the libraries when they are imported.
QUIET_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
# Controls of C0 and C1, ends of lines, lone surrogates, and characters that turn the direction of what follows.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def inert(text: str) -> str:
    r"""Text that cannot do anything to a terminal: unsafe characters are written out.

    >>> print(inert("Saw\x1b[2J\n   1  0.0  Jaws"))
    Saw\x1b[2J\n   1  0.0  Jaws
    """
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


@contextlib.contextmanager
def libraries_kept_quiet() -> Iterator[None]:
    """Keep what libraries print off stdout, and their warnings, log lines and bars off the terminal.

    Variables of the environment and Python's `-W` that somebody has set hold all the same.
    """
    for name, value in QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)  # where a library logs to nobody in particular
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield
