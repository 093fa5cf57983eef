"""Ids that look alike or name nothing: each kind of difference, and what is no difference."""

from __future__ import annotations

import polars as pl
import pytest

from llmrec.data.report.ids import folded, kind_of_difference, known_look_alike, look_alikes, names_of_nothing

ALIKE = {
    "blank behind": ("p3", "p3 ", "blanks"),
    "tab before": ("p3", "\tp3", "blanks"),
    "no-break space": ("p3", "p3\u00a0", "blanks"),
    "byte order mark": ("p3", "\ufeffp3", "blanks"),
    "zero-width space": ("p3", "p\u200b3", "blanks"),
    "line end of another system": ("p3", "p3\r", "blanks"),
    "quotes": ("p3", '"p3"', "blanks"),
    "a float": ("3", "3.0", "number"),
    "a float without decimals": ("3", "3.", "number"),
    "leading zeros": ("7", "007", "number"),
    "a sign": ("7", "+7", "number"),
    "scientific": ("100000", "1e+05", "number"),
    "case": ("Abc", "aBC", "case"),
    "wide digits": ("3", "\uff13", "characters"),
    "decomposed accent": ("caf\u00e9", "cafe\u0301", "characters"),
}
APART = {
    "another number": ("3.5", "3"),
    "integers beyond a float": ("9007199254740993", "9007199254740992"),
    "long hexadecimal ids": ("1e400", "1e401"),
    "a blank within": ("p 3", "p3"),
    "a negative number": ("-3", "3"),
    "zeros behind": ("30", "3"),
}


@pytest.mark.parametrize("case", ALIKE)
def test_ids_that_look_alike_are_found_and_their_difference_is_named(case):
    *pair, kind = ALIKE[case]
    found = look_alikes(pl.Series(["other", *pair]))
    assert (found["groups"], found["ids"]) == (1, 2)
    assert list(found["kinds"]) == [kind] and found["kinds"][kind]["examples"] == [sorted(pair)]
    assert kind_of_difference(*pair) == kind_of_difference(*reversed(pair)) == kind


@pytest.mark.parametrize("case", APART)
def test_ids_that_differ_stay_apart(case):
    assert look_alikes(pl.Series(APART[case])) == {"groups": 0, "ids": 0, "kinds": {}}


def test_groups_are_counted_and_the_first_are_shown():
    ids = [f"{number}{ending}" for number in range(5) for ending in ("", ".0")] + ["a", "A"]
    found = look_alikes(pl.Series(ids))
    assert (found["groups"], found["ids"]) == (6, 12)
    assert {kind: of["groups"] for kind, of in found["kinds"].items()} == {"number": 5, "case": 1}
    assert found["kinds"]["number"]["examples"] == [["0", "0.0"], ["1", "1.0"], ["2", "2.0"]]


def test_folding_keeps_an_id_that_is_plain():
    ids = ["b00005n7p0", "0", "p3", "a-b", "-1"]
    assert folded(pl.Series(ids)).to_list() == ids


def test_names_of_nothing_are_whole_ids():
    ids = ["nan", "None", " NULL ", "N/A", "nancy", "nonesuch", "0", "undefined"]
    assert names_of_nothing(pl.Series(ids)) == [" NULL ", "N/A", "None", "nan", "undefined"]


@pytest.mark.parametrize(
    ("unknown", "sentence"),
    [
        (["p3 "], "'p3 ' looks like 'p3' there, equal but for blanks, quotes or invisible characters"),
        (["x", "03"], "'03' looks like '3' there, the same number in another form"),
        (["3.0", "P3"], "'3.0' looks like '3' there, the same number in another form (2 of the unknown ids look like"),
    ],
)
def test_unknown_ids_are_told_from_known_ones(unknown, sentence):
    assert (known_look_alike(pl.Series(unknown), pl.Series(["3", "p3", "4"])) or "").startswith(sentence)


def test_an_id_that_looks_like_none_gets_no_sentence():
    assert known_look_alike(pl.Series(["zebra"]), pl.Series(["3", "p3"])) is None
