"""Public files are read without any option, to the values that their publishers mean."""

from __future__ import annotations

import json

import polars as pl
import pytest

from llmrec.data.intake.public.by_line import of_lines
from llmrec.data.intake.public.by_name import of_names
from llmrec.data.intake.read import read_tables
from tests.data.intake.public import samples
from tests.data.intake.public.samples import INTERACTIONS, SEQUENCES, TITLES, asin, put, reviewer, venue

DAY = 86_400


def plus_one(number: int) -> str:
    return str(number + 1)


# sample, id of a user, id of an item, time of `INTERACTIONS` to the one that is read, weight; None: in order, weight 1
LOGS = {
    "movielens_1m": (plus_one, plus_one, int, float),
    "movielens_25m": (plus_one, plus_one, int, lambda rating: rating - 0.5),
    "movielens_100k": (plus_one, plus_one, lambda time: time - 5 * 10**8, float),
    "recbole": (plus_one, plus_one, int, float),
    "recbole_histories": (str, str, None, None),
    "amazon_2023": (reviewer, asin, lambda time: time * 1000 + 923, float),
    "amazon_2023_core": (reviewer, asin, lambda time: time * 1000, float),
    "amazon_2014": (reviewer, asin, int, float),
    "amazon_2018": (reviewer, asin, int, float),
    "amazon_2014_ratings": (reviewer, asin, int, float),
    "amazon_2018_ratings": (reviewer, asin, int, float),
    "yelp": (lambda user: f"u_{user}", lambda item: f"b-{item}", int, float),
    "steam": (lambda user: f"Chaos {user}", lambda item: f"72528{item}", lambda time: time // DAY * DAY, None),
    "steam_200k": (lambda user: str(1000 + user), lambda item: TITLES[item].replace('"', ""), None, None),
    "s3rec": (plus_one, plus_one, None, None),
    "sasrec": (plus_one, plus_one, None, None),
    "lcrec": (str, str, None, None),
    "minionerec": (lambda user: f"A{user}", str, "step", None),
    "gowalla": (str, lambda item: str(22847 + item), int, None),
    "lastfm_1k": (
        lambda user: f"user_{user:06d}",
        lambda item: f"track-{item}" if item else "Artist 0 - Café Lumière",
        int,
        None,
    ),
    "lastfm_hetrec": (str, str, lambda time: time * 1000, None),
    "lastfm_plays": (str, str, None, lambda rating: 100.0 * rating),
    "foursquare": (str, venue, int, None),
    "foursquare_world": (str, venue, int, None),
}


@pytest.mark.parametrize("name", LOGS)
def test_log(tmp_path, name):
    user_of, item_of, time_of, weight_of = LOGS[name]
    log, items = getattr(samples, name)(tmp_path)
    dataset = read_tables(log, items)
    expected = []
    for user, sequence in enumerate(SEQUENCES):
        rows = [row for row in INTERACTIONS if row[0] == user]
        for step, (item, (*_, time, rating)) in enumerate(zip(sequence, rows, strict=True)):
            when = step if time_of is None else samples.START + 10 * user + step if time_of == "step" else time_of(time)
            expected.append((user_of(user), item_of(item), when, 1.0 if weight_of is None else weight_of(rating)))
    assert sorted(dataset.interactions.rows()) == sorted(expected)
    assert dataset.order_only == (time_of is None)
    assert any(" read as " in note for note in dataset.notes)


def items_of(name: str, tmp_path) -> dict[str, dict[str, object]]:
    """Items of a sample, by id."""
    items = read_tables(*getattr(samples, name)(tmp_path)).items
    return {row["item_id"]: row for row in items.to_dicts()}


def test_movielens_titles_years_and_genres(tmp_path):
    items = items_of("movielens_1m", tmp_path)
    assert items["1"] == {
        "item_id": "1", "title": "Café Lumière", "year": 1990, "genres": ["Drama", "Comedy"],
        "text": "Café Lumière. 1990. Drama, Comedy",
    }  # fmt: skip
    assert items["2"]["genres"] == ["Animation", "Children's", "Comedy"] and items["3"]["genres"] is None
    assert items["7"]["title"] == 'Deep "Dish'
    items = items_of("movielens_25m", tmp_path)
    assert items["2"]["title"] == "Tea & Co, The" and items["2"]["year"] == 1991
    assert items["8"] == {"item_id": "8", "title": "Rope", "year": None, "genres": None, "text": "Rope"}
    assert items_of("movielens_100k", tmp_path)["1"]["text"] == "Café Lumière. 1990. Animation, Comedy"


def test_recbole_items(tmp_path):
    assert items_of("recbole", tmp_path)["7"] == {
        "item_id": "7", "title": 'Deep "Dish', "year": 1996, "genres": ["Drama", "Sci-Fi"],
        "text": 'Deep "Dish. 1996. Drama, Sci-Fi',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "lists"),
    [
        (["Drama, Sci-Fi", "Crime"], [["Drama", "Sci-Fi"], ["Crime"]]),
        (["Drama|Sci-Fi", "Film Noir"], [["Drama", "Sci-Fi"], ["Film Noir"]]),
        (["'Musical Instruments', 'Drums'", ""], [["Musical Instruments", "Drums"], None]),
        (["1 2", "3"], [["1", "2"], ["3"]]),
    ],
)
def test_recbole_sequences(tmp_path, cells, lists):
    log = put(tmp_path / "x.inter", "user_id:token\titem_id:token\ttimestamp:float\n1\t1\t1.0\n1\t2\t8.8125e8\n")
    items = put(
        tmp_path / "x.item", f"item_id:token\tname:token\tcategories:token_seq\n1\tA\t{cells[0]}\n2\tB\t{cells[1]}\n"
    )
    dataset = read_tables(log, items)
    assert dataset.items["categories"].to_list() == lists and dataset.items["title"].to_list() == ["A", "B"]
    assert dataset.interactions["timestamp"].to_list() == [1.0, 881_250_000.0]


def test_amazon_2023_items(tmp_path):
    items = items_of("amazon_2023", tmp_path)
    assert items[asin(1)]["text"] == "Tea & Co. Beauty, Hair. Acme & Co. Soft. Warm"
    assert items[asin(1)]["categories"] == ["Beauty", "Hair"]
    assert items[asin(0)]["text"] == "Café Lumière"
    assert [items[asin(item)]["price"] for item in range(8)] == [12.99, None, None, 5.99, 1299.0, None, 4.5, 3.0]
    assert not {"images", "videos", "details"} & set(items[asin(0)])


def test_amazon_2023_reviews_bring_no_titles_to_items(tmp_path):
    log, _ = samples.amazon_2023(tmp_path)
    assert set(read_tables(log).items["title"]) == {None}


def test_amazon_2014_items(tmp_path):
    items = items_of("amazon_2014", tmp_path)
    assert items[asin(0)]["categories"] == ["Sports", "Dance", "Girls' clothes"]
    assert items[asin(0)]["text"] == "Café Lumière. Sports, Dance, Girls' clothes. Coxlures. It's soft."
    assert items[asin(2)]["title"] is None and items[asin(2)]["text"] == ""
    assert items[asin(0)]["price"] == 3.17


def test_amazon_2018_items(tmp_path):
    items = items_of("amazon_2018", tmp_path)
    assert [items[asin(item)]["price"] for item in range(8)] == [5.99, 1005.99, None, 4.99, None, 3.0, 2.0, 1.0]
    assert items[asin(2)]["text"] == "Lamp. Sports, Dance. Acme. Soft. One. Two"


def test_yelp_businesses(tmp_path):
    items = items_of("yelp", tmp_path)
    assert items["b-1"]["categories"] == ["Coffee & Tea", "Bars", "Bed & Breakfast"]
    assert (items["b-1"]["title"], items["b-1"]["lat"], items["b-1"]["lon"]) == ("Tea & Co", 34.41, -119.7)
    assert (
        items["b-1"]["text"] == "Tea & Co. Coffee & Tea, Bars, Bed & Breakfast" and items["b-0"]["categories"] is None
    )


def test_steam_games(tmp_path):
    items = items_of("steam", tmp_path)
    assert [items[f"72528{item}"]["price"] for item in range(5)] == [4.99, 0.0, 0.0, 9.99, None]
    assert items["725283"]["title"] == "Saw" and len(items) == 8
    assert items["725280"]["genres"] == ["Action", "Indie"]


def test_items_that_stand_in_the_log(tmp_path):
    assert items_of("steam_200k", tmp_path)["Lamp"]["title"] == "Lamp"
    gowalla = items_of("gowalla", tmp_path)["22848"]
    assert (gowalla["lat"], gowalla["lon"]) == (30.21, -97.71)
    cafe = items_of("foursquare", tmp_path)[venue(1)]
    assert (cafe["category"], cafe["lat"], cafe["text"]) == ("Café", 40.71, "Café")
    assert items_of("lastfm_1k", tmp_path)["track-6"]["title"] == 'Deep "Dish'
    assert items_of("minionerec", tmp_path)["1"]["title"] == "Tea & Co"


def test_items_of_other_layouts(tmp_path):
    assert items_of("lcrec", tmp_path)["0"]["text"] == "Café Lumière. a,b. Acme. One. Two"
    assert items_of("lastfm_hetrec", tmp_path)["6"]["title"] == 'Deep "Dish'
    world = items_of("foursquare_world", tmp_path)[venue(3)]
    assert (world["title"], world["category"], world["text"]) == (None, "Jazz Club", "Jazz Club")


def test_minionerec_without_times_is_in_order(tmp_path):
    dataset = read_tables(samples.minionerec(tmp_path, times=False)[0])
    assert dataset.order_only
    first = dataset.interactions.filter(pl.col("user_id") == "A0")
    assert first["item_id"].to_list() == [str(item) for item in SEQUENCES[0]]
    assert first["timestamp"].to_list() == list(range(4))


def test_pairs_out_of_order_are_refused(tmp_path):
    rows = ['u,"[1, 2]",3', 'u,"[1]",2']
    log = put(tmp_path / "train.csv", samples.lines(["user_id,history_item_id,item_id", *rows]))
    with pytest.raises(ValueError, match=r"train.csv: the history of a pair of user 'u' does not end with the item"):
        read_tables(log)


def test_an_option_goes_before_the_layout(tmp_path):
    log, _ = samples.amazon_2023(tmp_path)
    assert set(read_tables(log, item_column="asin").interactions["item_id"]) == {f"V{item}" for item in range(8)}
    log, items = samples.yelp(tmp_path)
    dataset = read_tables(log, items, weight_column="useful", title_column="address", timestamp_column="stars")
    assert set(dataset.interactions["weight"]) == {0.0} and set(dataset.items["title"]) == {"1 Road"}
    assert set(dataset.interactions["timestamp"]) == {1.0, 2.0, 3.0, 4.0, 5.0}
    log, items = samples.recbole(tmp_path)
    swapped = read_tables(log, items, user_column="item_id:token", item_column="user_id", item_file_column="item_id")
    assert set(swapped.interactions["user_id"]) == {str(item + 1) for items in SEQUENCES for item in items}
    log, _ = samples.lastfm_1k(tmp_path)
    assert set(read_tables(log, item_column="artist_id").interactions["item_id"]) == {"artist-0", "artist-1"}


def test_latin_and_utf8_movies_are_told_apart(tmp_path):
    log, items = samples.movielens_1m(tmp_path)
    put(items, items.read_bytes().decode("latin-1"), "utf-8")  # as MovieLens-10M
    assert read_tables(log, items).items["title"][0] == "Café Lumière"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("log.txt", ["1 5 881250949", "2 6 881250950"]),  # user, item and time, with users that differ
        ("log.txt", ["a b", "c d"]),
        ("log.csv", ["1,2,3", "4,5,6"]),
        ("log.json", ['{"user_id": "a", "items": [1]}', '{"user_id": "b", "items": [2]}']),
        ("log.jsonl", ['{"tags": ["a"], "user_id": "b"}']),
        ("log.json", ['{"a": [1], "b": "c"}']),
        ("ratings.dat", ["UserID::MovieID::Rating::Timestamp"]),
        ("x.tsv", ["1\t2\t3", "4\t5\t6"]),
    ],
)
def test_other_files_are_of_no_layout(name, lines):
    assert of_lines(name, lines) is None


@pytest.mark.parametrize(
    "names",
    [["user_id", "item_id", "timestamp"], ["user", "item"], ["id", "name", "price"], ["item_id:token", "x"], []],
)
def test_other_tables_are_of_no_layout(names):
    assert of_names(names) is None


def test_half_a_json_history_is_one_clear_line(tmp_path):
    log = put(tmp_path / "inter.json", '{"0": [1, 2, 3], "1": [2')
    with pytest.raises(ValueError, match=r"inter.json: it is not JSON") as error:
        read_tables(log)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("orient", ["lists", "rows by number"])
def test_a_table_by_columns_is_no_history(tmp_path, orient):
    """`DataFrame.to_json()` writes column -> row -> cell, which looks like item -> field -> value."""
    table = {"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2], "weight": [0.5, None]}
    if orient != "lists":
        table = {name: {str(row): cell for row, cell in enumerate(cells)} for name, cells in table.items()}
    dataset = read_tables(put(tmp_path / "log.json", json.dumps(table)))
    assert dataset.interactions.rows() == [("u", "a", 1, 0.5), ("u", "b", 2, None)]


def test_users_may_be_called_users(tmp_path):
    log = put(tmp_path / "inter.json", json.dumps({"user_1": ["item_2", "item_1"], "user_2": ["item_1"]}))
    assert read_tables(log).interactions.rows()[:2] == [("user_1", "item_2", 0, 1.0), ("user_1", "item_1", 1, 1.0)]


@pytest.mark.parametrize("content", [{"0": [[1, 5], [2, 6]]}, {"0": [{"item": 1}]}, {"0": [1], "1": [[2]]}])
def test_histories_of_anything_but_items_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"inter.json: the value of '\d' is no list of items") as error:
        read_tables(put(tmp_path / "inter.json", json.dumps(content)))
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind_is_named(tmp_path):
    log, items = samples.movielens_25m(tmp_path)
    with pytest.raises(ValueError, match=r"movies.csv lacks .* It is read as MovieLens movies; is it the right file\?"):
        read_tables(items, log)
