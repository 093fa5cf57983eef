"""Configs: YAML and flags become the types of the fields, and every problem is named at once."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.configs import (
    STAGES,
    EvaluateConfig,
    PrepareConfig,
    RecommendConfig,
    SftConfig,
    TeachConfig,
    TokenizeConfig,
)
from llmrec.configs.file import load_config
from llmrec.configs.options import Config, option, suggestion
from llmrec.data.known_datasets import KNOWN
from llmrec.tokenizers import TOKENIZERS

# Values of the options that stages require: data and models, never a setting.
REQUIRED = {
    "source": "run/checkpoint",
    "repo_id": "someone/shop",
    **dict.fromkeys(("out", "catalog", "views", "sid", "model"), "x"),
    "runs": ["x"],
    "members": ["x", "y"],
    "ranker": "item_knn",
    "to": "space",
    "layout": "openonerec",
    "index": "x",
}


@pytest.fixture
def load(tmp_path):
    def load(cls, text: str, **flags):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(cls, path, flags)

    return load


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_explains_itself_and_its_default_is_valid(stage):
    cls = STAGES[stage]
    assert cls.__doc__.strip().endswith(".")
    for field in dataclasses.fields(cls):
        assert field.metadata["help"].endswith("."), field.name
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    assert required <= REQUIRED.keys()
    required |= {"out", "catalog"} if cls is TokenizeConfig else set()  # needed by what it makes, not by `compare`
    values = {name: REQUIRED[name] for name in required}
    config = load_config(cls, overrides=values)
    for field in dataclasses.fields(cls):
        if isinstance(getattr(config, field.name), list):  # not shared between instances
            assert getattr(config, field.name) is not getattr(cls(**values), field.name)


@pytest.mark.parametrize("stage", STAGES)
def test_values_come_back_from_the_text_of_a_flag(stage):
    """What --help shows as a default can be given as a flag."""
    cls = STAGES[stage]
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING or (cls is TokenizeConfig and field.name in ("out", "catalog")):
            continue
        text = "null" if field.default is None else str(field.default)
        names = _names(cls) - ({"members", "views", "sid"} if cls is TeachConfig else set())  # item_knn reads none
        given = {name: value for name, value in REQUIRED.items() if name in names}
        assert getattr(load_config(cls, overrides={**given, field.name: text}), field.name) == field.default


def _names(cls) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_flags_win_over_the_file(load):
    config = load(PrepareConfig, "out: a\nk_core: 3\nseed: 1\n", k_core="7")
    assert (config.out, config.k_core, config.seed) == ("a", 7, 1)


def test_the_type_of_a_field_decides_what_a_scalar_is(load):
    """YAML 1.1 would read the octal 35023, a date, False and 1e4 as text."""
    config = load(RecommendConfig, "model: 0104257\nhistory: [0104257, 2012-04-03, no, 1e4, 'null']\nk: 1e1\n")
    assert config.model == "0104257"
    assert config.history == ["0104257", "2012-04-03", "no", "1e4", "null"]
    assert config.k == 10


def test_none_lists_and_switches(load):
    needed = "out: o\ncatalog: c\nviews: v\n"
    config = load(TokenizeConfig, needed + "view_names: null\nappend: ~\noverwrite: True\n")
    assert (config.view_names, config.append, config.overwrite) == (None, None, True)
    assert load(TokenizeConfig, needed + "view_names: text, collaborative\n").view_names == ["text", "collaborative"]
    assert load(TokenizeConfig, needed + "view_names: [text]\n").view_names == ["text"]
    assert load(EvaluateConfig, "out: o\ncatalog: c\nmodel: m\nk: [1, 20]\n").k == [1, 20]
    assert load(EvaluateConfig, "out: o\ncatalog: c\nmodel: m\nk: 5\nbaselines: []\n").baselines == []


@dataclasses.dataclass(kw_only=True)
class Every(Config):
    """An option of every type."""

    text: str = option("Text.")
    choice: Literal["one", "two"] = option("Choice.", "one")
    integer: int = option("Integer.", 0)
    number: float = option("Number.", 0.5)
    texts: list[str] = option("Texts.", [])
    numbers: list[float] | None = option("Numbers.", None)
    switch: bool = option("Switch.", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"integer": 16.0}, "integer is 16.0; an integer is needed"),
        ({"integer": "16"}, "integer is '16'; an integer is needed"),
        ({"integer": True}, "integer is True; an integer is needed"),
        ({"number": float("inf")}, "number is inf; a finite number is needed"),
        ({"number": "0.1", "integer": None}, "integer is None; an integer is needed; number is '0.1'; a finite number"),
        ({"texts": "beam"}, "texts is 'beam'; a list of texts is needed"),
        ({"number": 10**400}, "a finite number is needed"),
        ({"numbers": 0.5}, "numbers is 0.5; a list of finite numbers is needed"),
        ({"numbers": [1, "x"]}, "numbers is [1, 'x']; a list of finite numbers is needed"),
        ({"switch": 1}, "switch is 1; true or false is needed"),
        ({"text": None}, "text is None; text is needed"),
        ({"choice": np.array(["one", "two"])}, "choose from one, two"),
        ({"choice": "three"}, "choice is 'three'; choose from one, two"),
    ],
)
def test_types_are_held_from_python_too(options, message):
    Every(text=Path("m"), number=1, integer=np.int64(8), numbers=(1, 2.5))
    with pytest.raises(ValueError, match=re.escape(message)):
        Every(**{"text": "m"} | options)


def test_integers_are_not_rounded(load):
    assert load(PrepareConfig, f"out: o\nnum_users: {2**53 + 1}\n").num_users == 2**53 + 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("k_cor: 3", "unknown key 'k_cor' in .*run.yaml; did you mean 'k_core'?"),
        ("zzzzzz: 3", "unknown key 'zzzzzz' in .*run.yaml; known keys: out, overwrite, seed"),
        ("k_core: five", r"k_core is 'five'; an integer is needed \(in .*run.yaml\)"),
        ("k_core: 2.5", "is '2.5'; an integer is needed"),
        ("k_core: true", "is 'true'; an integer is needed"),
        ("k_core: [1]", r"is \['1'\]; an integer is needed"),
        ("max_history: null", "is None; an integer is needed"),
        ("k_core: 1e999", "is '1e999'; an integer is needed"),
        ("dataset: [a]", r"is \['a'\]; text is needed"),
        ("dataset: {a: b}", r"is \{'a': 'b'\}; text is needed"),
        ("overwrite: yes", "is 'yes'; true or false is needed"),
        ("split: random", "is 'random'; choose from leave_one_out, temporal, published"),
        ("k_core: -1", "k_core is -1; at least 0 is needed"),
        ("num_users: 0", "num_users is 0; at least 1 is needed"),
        ("seed: 4294967296", "seed is 4294967296; at most 4294967295 is allowed"),
        ("seed: 1\nseed: 2", "sets seed more than once"),
        ("? [a]\n: 1", "not valid YAML"),
        ("a: b: c", "not valid YAML.*"),
        ("out: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_wrong_line(load, line, message):
    with pytest.raises(ValueError, match=message):
        load(PrepareConfig, line + "\n", out="o")


def test_an_unknown_choice_is_refused_in_python_too():
    with pytest.raises(ValueError, match="train is 'lorra'; choose from lora, sid_tokens, full"):
        SftConfig(catalog="c", model="m", out="o", train="lorra")


@pytest.mark.parametrize("text", ["- a\n", "text\n", "3\n"])
def test_a_file_that_is_no_mapping(load, text):
    with pytest.raises(ValueError, match="must map keys to values"):
        load(PrepareConfig, text, out="o")


def test_an_empty_file_sets_nothing(load):
    assert load(PrepareConfig, "# nothing\n", out="o") == PrepareConfig(out="o")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("out: é".encode("latin1"))
    for path, message in (("absent.yaml", "does not exist"), ("", "is a directory"), ("latin.yaml", "not UTF-8")):
        with pytest.raises(ValueError, match=message):
            load_config(PrepareConfig, tmp_path / path)


def test_every_problem_is_reported_at_once(load):
    with pytest.raises(ValueError) as caught:
        load(SftConfig, "catlog: c\nepochs: 0\nbatch_size: x\ntrain: most\ndropout: 2\n", learning_rte="1")
    message = str(caught.value)
    for part in (
        "unknown key 'catlog' in", "did you mean 'catalog'?", "epochs is 0.0; more than 0 is needed",
        "batch_size is 'x'; an integer is needed (in ", "train is 'most'; choose from",
        "dropout is 2.0; at most 1 is allowed",
        "unknown key 'learning_rte' in the command line; did you mean 'learning_rate'?",
        "'out' is required: Directory to write.", "'catalog' is required", "'model' is required",
    ):  # fmt: skip
        assert part in message


def test_bounds_hold_however_a_config_is_made():
    with pytest.raises(ValueError, match="num_levels is 0; at least 1 is needed; iterations is 0"):
        TOKENIZERS["rq_kmeans"](num_levels=0, iterations=0)
    with pytest.raises(ValueError, match=r"branching is \[4, 1\]; at least 2 is needed"):
        TOKENIZERS["gaoq"](branching=[4, 1])
    with pytest.raises(ValueError, match="k is 0"):
        dataclasses.replace(RecommendConfig(model="m"), k=0)


@given(st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.booleans() | st.none())
@settings(derandomize=True, max_examples=25, deadline=None)
def test_a_number_is_taken_exactly_or_refused(value):
    try:
        seed = load_config(PrepareConfig, overrides={"out": "o", "seed": value}).seed
    except ValueError as error:
        assert "seed" in str(error)
    else:
        assert isinstance(seed, int) and math.isclose(seed, float(value), abs_tol=0, rel_tol=0)


def test_what_configs_repeat_to_stay_light_is_what_the_library_says():
    assert EvaluateConfig(out="o", catalog="c", model="m").named == ["popularity", "repeat", "markov", "item_knn"]
    assert TokenizeConfig.method in TOKENIZERS
    known = PrepareConfig.__dataclass_fields__["dataset"].metadata["help"]
    assert [name for name in KNOWN if name not in known] == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("epohcs", "epochs"), ("Batch-Size", "batch_size"), ("batchsize", "batch_size"), ("stf", "sft"), ("rul", "rule"),
     ("amazon14_beuty", "amazon14-beauty"), ("learning_rte", "learning_rate"), ("rate", None), ("lr", None),
     ("seed", None), ("images", None), (7, None), ("k", None), ("", None), ("atch", None)],
    ids=str,
)  # fmt: skip
def test_only_a_near_name_is_suggested(typed, meant):
    known = ["epochs", "learning_rate", "batch_size", "k_core", "sft", "rank", "rule", "amazon14-beauty"]
    expected = "choose from epochs, " if meant is None else f"did you mean '{meant}'?"
    assert suggestion(typed, known).startswith(expected)
