"""The corpus of bad input: command lines, what is broken in what they are given, and what the error must say.

A case is data; `tests/test_bad_input.py` runs every one of them through the command line. To add one, add an entry to
the file of its stage; `damage.py` has the ways to break a good artefact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Break = Callable[[Path], None]

# What every case of a stage is given before its own flags, which win; `@name` is the path of a good artefact.
GIVEN = {
    "prepare": "--interactions @log.csv --items @items.csv --k-core 0",
    "embed": "--catalog @catalog --text-encoder tfidf --collaborative-dim 4",
    "tokenize": "--catalog @catalog --views @views --codebook-size 4 --num-levels 2 --device cpu",
    "extend": "--sid @sid --model micro --catalog @catalog --micro-hidden 32 --micro-layers 1",
    "teach": "--catalog @catalog --device cpu",
    "sft": "--catalog @catalog --model @base --train full --max-steps 2 --batch-size 8 --micro-batch-size 8 "
    "--max-history 6 --warmup-steps 0 --device cpu",
    "alternate": "--catalog @catalog --views @views --sid @sid --model @base --train full --epochs 2 "
    "--cycle-steps 1 --align-after 0 --batch-size 8 --max-history 6 --warmup-steps 0 --device cpu",
    "refine": "--catalog @catalog --model @checkpoint --device cpu",
    "dpo": "--catalog @catalog --model @checkpoint --max-steps 2 --batch-size 8 --micro-batch-size 8 --device cpu",
    "grpo": "--catalog @catalog --model @checkpoint --max-steps 2 --batch-size 8 --micro-batch-size 8 --device cpu",
    "evaluate": "--catalog @catalog --model @checkpoint --max-examples 8 --device cpu",
    "ensemble": "--catalog @catalog --members @base @checkpoint --max-examples 8 --device cpu",
    "recommend": "--model @checkpoint --device cpu",
}


@dataclass(frozen=True)
class Case:
    """One command that must be refused.

    Args:
        command: Stage and flags; `@name` is the path of a good artefact, of what `broken` makes, or of a new file.
        says: What the error must contain, in any order: the file, the key or row, the remedy.
        broken: Name -> what is done to a copy of the artefact of that name, or to a path where there is none.
        given: Whether the flags of GIVEN come first.
        env: Environment variables of the run; values may be `@name` as well.
        needs: `data` (real datasets on this machine) or `no gpu`, where a case can be shown only there.
    """

    command: str
    says: tuple[str, ...]
    broken: Mapping[str, Break] = field(default_factory=dict)
    given: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
