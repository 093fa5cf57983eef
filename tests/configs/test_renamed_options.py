"""Old names of options and of their values: refused with the new name, together with every other problem."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from llmrec.cli import main
from llmrec.configs import STAGES
from llmrec.configs.file import load_config
from llmrec.configs.options import Config, option


@dataclass(kw_only=True)
class Training(Config):
    renamed: ClassVar = {"loss_on": "targets", "sid_loss": "normalize_over"}

    targets: Literal["every_item", "last_item"] = option("Items that are targets.", "every_item")
    normalize_over: str = option("Codes that a softmax is taken over.", "level")


@dataclass(kw_only=True)
class Tuning(Training):
    """Declares its own old names; those of its base hold too, less those that it declares itself."""

    renamed: ClassVar = {"use_dora": "removed: no recipe gained from it", "sid_loss": "removed: one way is left"}
    renamed_values: ClassVar = {
        "train": {"rows": "sid_tokens", "bias": "removed: it never learned"},
        "rewards": {"hit": "exact"},
    }

    train: Literal["lora", "sid_tokens"] = option("Weights that are trained.", "lora")
    rewards: list[str] = option("Rewards of an answer.", ["exact"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_on": "last_item"}, "unknown key 'loss_on' in the command line; it is now called 'targets'"),
        ({"use_dora": "true"}, "unknown key 'use_dora' in the command line; removed: no recipe gained from it"),
        ({"sid_loss": "full"}, "unknown key 'sid_loss' in the command line; removed: one way is left"),
        ({"train": "rows"}, "train is 'rows'; it is now called 'sid_tokens'"),
        ({"train": "bias"}, "train is 'bias'; removed: it never learned"),
        ({"rewards": "exact hit"}, "rewards is ['exact', 'hit']; it is now called 'exact'"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(Tuning, overrides=given)


def test_old_names_are_reported_with_every_other_problem(tmp_path):
    (tmp_path / "run.yaml").write_text("loss_on: last_item\ntrain: rows\nlearning: 1\n")
    with pytest.raises(ValueError) as caught:
        load_config(Tuning, tmp_path / "run.yaml", {"sid_loss": "full"})
    message = str(caught.value)
    for part in (
        "unknown key 'loss_on' in ",
        "run.yaml; it is now called 'targets'",
        "train is 'rows'; it is now called 'sid_tokens' (in ",
        "unknown key 'learning'",
        "'sid_loss' in the command line; removed:",
    ):
        assert part in message


def test_an_old_value_is_refused_in_python_too():
    with pytest.raises(ValueError, match="train is 'rows'; it is now called 'sid_tokens'"):
        Tuning(train="rows")


def test_an_old_flag_is_refused_by_the_command(monkeypatch, capsys):
    monkeypatch.setitem(STAGES, "prepare", Tuning)
    assert main(["prepare", "--loss-on", "last_item", "--train", "rows"]) == 2
    said = capsys.readouterr().err
    assert "'loss_on' in the command line; it is now called 'targets'" in said
    assert "train is 'rows'; it is now called 'sid_tokens'" in said


@pytest.mark.parametrize("stage", STAGES)
def test_new_names_exist_and_old_names_do_not(stage):
    cls = STAGES[stage]
    fields = {field.name for field in dataclasses.fields(cls)}
    for old, new in cls.inherited("renamed").items():
        assert old not in fields and (new in fields or new.startswith("removed:")), old
    for option_name, values in cls.inherited("renamed_values").items():
        assert option_name in fields and all(isinstance(new, str) for new in values.values())
