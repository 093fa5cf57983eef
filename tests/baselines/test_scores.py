"""Scores of one's own by hand: places of training sequences and held-out examples, and every wrong file."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.baselines.counted.popularity import FLOOR
from llmrec.baselines.queries import Queries, queries_of
from llmrec.baselines.scores import Scores, places, read_scores
from tests.support.networks import CPU, split

# Users 0 and 1 have the training sequences 0 1 2 and 3 4, and one valid and one test example each; user 2 trains on a
# single item.
CATALOG = split([[0, 1, 2], [3, 4], [5]], [[0, 1, 2, 6], [3, 4, 7]], [[1, 2, 6, 8], [3, 4, 7, 9]])


def file(path, *lines):
    schema = {"user_id": pl.String, "position": pl.Int64, "item_id": pl.String, "score": pl.Float64}
    pl.DataFrame(lines, schema=schema, orient="row").write_parquet(path)
    return path


def scores(path, *lines) -> Scores:
    return Scores(CATALOG, "cpu", read_scores(file(path, *lines), CATALOG))


def test_places_by_hand():
    found = places(CATALOG).rows()
    assert [row[:2] for row in found[:6]] == [("0", 0), ("0", 1), ("0", 2), ("1", 0), ("1", 1), ("2", 0)]
    assert [row[:2] for row in found[6:]] == [("0", 3), ("1", 2), ("0", 4), ("1", 3)]
    assert len({row[2] for row in found}) == 10


def test_places_of_a_user_who_was_never_trained_and_of_cut_histories():
    """One user has three examples but no training sequence; the first answer has one item before it."""
    cut = split([[0, 1]], [], [[2, 3], [2, 3, 4], [4, 5]])
    table = cut._split
    table = table.set_column(0, "user_id", [["0", "new", "new", "new"]])
    found = places(type(cut)(cut.items, table)).rows()
    assert [row[:2] for row in found] == [("0", 0), ("0", 1), ("new", 1), ("new", 2), ("new", 3)]


def test_a_place_has_the_softmax_of_its_scores_and_any_other_popularity(tmp_path):
    ranker = scores(
        tmp_path / "s.parquet", ("0", 2, "9", 1.0), ("0", 2, "8", 0.0), ("1", 1, "7", -5.0), ("1", 2, "6", 3.0)
    )
    # A window of user 0 from its second item on, asked at place 2; one of user 1, asked at 0 and 1.
    queries = Queries(
        torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), torch.tensor([0, 1]),
        torch.tensor([1, 0]),
    )  # fmt: skip
    popular = ranker.popularity.softmax(dim=0)
    own = torch.zeros(3, 12)
    own[0, 9], own[0, 8] = torch.tensor([1.0, 0.0]).softmax(dim=0)
    own[2, 7] = 1
    expected = (1 - FLOOR) * own + FLOOR * popular
    expected[1] = popular
    torch.testing.assert_close(ranker.probabilities(queries, False), expected)
    assert ranker.probabilities(queries, True)[2, 3] == 0


def test_histories_are_those_of_held_out_examples(tmp_path):
    ranker = scores(tmp_path / "s.parquet", ("1", 2, "6", 3.0), ("0", 4, "11", 0.0))
    histories = [np.array(items) for items in ([3, 4], [1, 2, 6], [3], [0, 1, 2])]
    found = ranker.probabilities(queries_of(histories, CPU), False)
    assert found[0].argmax() == 6 and found[1].argmax() == 11
    torch.testing.assert_close(found[2:], ranker.popularity.softmax(dim=0).expand(2, 12))
    assert ranker.rank(histories[:2], 1).items.tolist() == [[6], [11]]


def test_examples_with_the_same_history_get_the_mean(tmp_path):
    same = split([[0, 1], [0, 1], [2, 3]], [[0, 1, 2], [0, 1, 3]], [])
    path = file(tmp_path / "s.parquet", ("0", 2, "5", 1.0), ("1", 2, "5", 0.0), ("1", 2, "6", 0.0))
    found = Scores(same, "cpu", read_scores(path, same)).spread(queries_of([np.array([0, 1])], CPU))
    assert found[0, [5, 6]].tolist() == pytest.approx([0.75, 0.25])


WRONG = {
    "unknown user": (
        [("nobody", 0, "1", 1.0)],
        r"names 1 users that catalog/split\.parquet lacks; first: \['nob",
    ),
    "unknown item": ([("0", 0, "99", 1.0)], r"1 item ids are not in .*first: \['99'\]"),
    "unknown place": ([("0", 5, "1", 1.0)], "first: position 5 of user '0', whose last is 4"),
    "nan": ([("0", 0, "1", float("nan"))], "has 1 scores that are no finite number"),
    "null": ([("0", 0, "1", None)], "has 1 scores that are no finite number"),
    "twice": ([("0", 0, "1", 1.0), ("0", 0, "1", 2.0)], "scores an item twice at the same place"),
    "empty": ([], "has no lines"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused(tmp_path, case):
    lines, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as error:
        read_scores(file(tmp_path / "s.parquet", *lines), CATALOG)
    assert "s.parquet" in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_of_scores_is_refused(tmp_path):
    path = tmp_path / "s.parquet"
    with pytest.raises(ValueError, match="does not exist"):
        read_scores(path, CATALOG)
    path.write_text("user_id,position\n")
    with pytest.raises(ValueError, match="is not a parquet file"):
        read_scores(path, CATALOG)
    pl.DataFrame({"user_id": ["0"], "item": ["1"]}).write_parquet(path)
    with pytest.raises(ValueError, match=r"lacks the columns \['position', 'item_id', 'score'\]; it has"):
        read_scores(path, CATALOG)
    wrong = {"user_id": ["0"], "position": ["first"], "item_id": ["1"], "score": [1.0]}
    pl.DataFrame(wrong).write_parquet(path)
    with pytest.raises(ValueError, match="needs columns of the types"):
        read_scores(path, CATALOG)
