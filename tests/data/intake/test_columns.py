"""Choice of columns: what the user names, common names without doubt, item columns in the log; the rest is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrec.data.intake.read import read_tables

ROWS = "u,01,1\nu,02,2\nv,01,3\n"
LOG = [("u", "01", 1, 1.0), ("u", "02", 2, 1.0), ("v", "01", 3, 1.0)]


@pytest.fixture
def put(tmp_path):
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "header",
    [
        "reviewerID,asin,unixReviewTime",
        "userId,movieId,time",
        "User ID,Item-ID,Timestamp",
        "customer_id,sku,date",
        "uid,iid,ts",
    ],
)
def test_common_names_are_read_and_said(put, header):
    dataset = read_tables(put("log.csv", f"{header}\n{ROWS}"))
    assert dataset.interactions.rows() == LOG
    said = "\n".join(dataset.notes)
    for name, option in zip(header.split(","), ("--user-column", "--item-column", "--timestamp-column"), strict=True):
        assert f"column '{name}' is read as" in said and f"{option} names another" in said


def test_names_of_llmrec_go_before_common_names(put):
    dataset = read_tables(put("log.csv", "user_id,item_id,timestamp,user,sku\nu,01,1,x,y\n"))
    assert dataset.interactions.rows() == [("u", "01", 1, 1.0)]
    assert dataset.notes == (f"{put('x', '').with_name('log.csv')}: not read: 'user', 'sku'.",)


REFUSED = {
    "two common names": (
        "user,customer,item_id,timestamp",
        {},
        r"needs --user-column, because 'user' and 'customer' may be meant",
    ),
    "nothing like it": (
        "a,b,timestamp,d",
        {},
        r"lacks the columns 'user_id' \(--user-column\), 'item_id' \(--item-column\); it has 'a', 'b'",
    ),
    "a slip in the file": ("usr_id,item_id,timestamp,d", {}, r"'user_id' \(--user-column usr_id\?\)"),
    "a slip in the option": ("who,item_id,timestamp,d", {"user_column": "whoo"}, r"'whoo' \(--user-column who\?\)"),
    "no times": ("user_id,item_id,b,c", {}, r"'timestamp' \(--timestamp-column\).*give --order-only"),
    "one column twice": ("user_id,item_id,timestamp,c", {"weight_column": "timestamp"}, "name one column twice"),
    "no such weight": ("user_id,item_id,timestamp,c", {"weight_column": "rating"}, r"'rating' \(--weight-column\)"),
    "no such title": ("user_id,item_id,timestamp,c", {"title_column": "label"}, r"'label' \(--title-column\)"),
    "a row in place of the header": ("ann,tea,2020-01-01,x", {}, "If that is a row, put a line with the names"),
    "another separator": (
        "user_id*item_id*timestamp*x",
        {},
        "a whole line, give the text between its cells with --sep",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(put, case):
    header, options, message = REFUSED[case]
    cells = "u,1,2,3" if "," in header else "u*1*2*3"
    with pytest.raises(ValueError, match=message):
        read_tables(put("log.csv", f"{header}\n{cells}\n"), **options)


def test_the_item_column_may_have_another_name_in_the_item_file(put):
    log = put("log.csv", "user_id,item_id,timestamp\n" + ROWS)
    items = put("items.csv", "code;label;price\n01;Tea;1,5\n02;Jam;2\n")
    dataset = read_tables(log, items, item_file_column="code", title_column="label")
    assert dataset.items.select("item_id", "title", "price").rows() == [("01", "Tea", 1.5), ("02", "Jam", 2.0)]
    found = read_tables(log, put("items.csv", "asin,name\n01,Tea\n02,Jam\n"))
    assert found.items["title"].to_list() == ["Tea", "Jam"]
    with pytest.raises(ValueError, match=r"items.csv lacks the columns 'item_id' \(--item-file-column\)"):
        read_tables(log, put("items.csv", "code,title\n01,Tea\n"))


def test_weights(put):
    log = put("log.csv", "user_id;item_id;timestamp;rating;weight\nu;1;1;4,5;9\nu;2;2;;9\n")
    assert read_tables(log, weight_column="rating").interactions["weight"].to_list() == [4.5, None]
    assert read_tables(log).interactions["weight"].to_list() == [9.0, 9.0]
    log = put("log.csv", "user_id,item_id,timestamp,stars\nu,1,1,4\n")
    assert "--weight-column stars keeps it as the weight" in read_tables(log).notes[-1]


def test_order_only_numbers_the_rows_of_each_user(put):
    dataset = read_tables(put("log.csv", "user_id,item_id,timestamp\nu,b,9\nv,a,8\nu,a,7\n"), order_only=True)
    assert dataset.order_only
    assert dataset.interactions.rows() == [("u", "b", 0, 1.0), ("v", "a", 0, 1.0), ("u", "a", 1, 1.0)]
    assert dataset.notes[-1].endswith("not read: 'timestamp'.")


def check_ins(count: int, **columns) -> str:
    """Log of `count` rows over 25 items; a column is a function of the row and the item."""
    rows = [
        f"u{row % 7},i{row % 25},{row}" + "".join(f",{make(row, row % 25)}" for make in columns.values())
        for row in range(count)
    ]
    return "\n".join([",".join(["user_id", "item_id", "timestamp", *columns]), *rows]) + "\n"


def test_columns_with_one_value_for_each_item_are_the_items(put):
    log = check_ins(
        100,
        title=lambda row, item: f"Place {item}",
        lat=lambda row, item: 30 + item / 10,
        lon=lambda row, item: -97.5,
        city=lambda row, item: f"City {item % 4}",
        device=lambda row, item: f"D{row % 3}",
        rating=lambda row, item: row % 3,
        country=lambda row, item: "DE",
    )
    dataset = read_tables(put("log.csv", log))
    assert dataset.items.columns == ["item_id", "title", "lat", "lon", "city", "text"]
    assert dataset.items.row(3) == ("i3", "Place 3", 30.3, -97.5, "City 3", "Place 3")
    assert "columns of the items: title, lat, lon, city." in dataset.notes[0]
    assert "not read: 'device', 'rating', 'country'" in dataset.notes[1]


def test_titles_and_texts_of_reviews_are_no_titles_of_items(put):
    log = check_ins(100, title=lambda row, item: f"Great {row % 9}", text=lambda row, item: f"I like {row}")
    dataset = read_tables(put("log.csv", log))
    assert (
        dataset.items["title"].null_count() == dataset.items.height and "not read: 'title', 'text'" in dataset.notes[0]
    )


def test_the_latest_value_is_taken_where_an_item_was_renamed(put):
    log = check_ins(100, name=lambda row, item: "New" if (row, item) == (75, 0) else f"Place {item}")
    dataset = read_tables(put("log.csv", log))
    assert dataset.items["title"].to_list()[:2] == ["New", "Place 1"]
    assert any("1 items have several values of title; the latest one is taken" in note for note in dataset.notes)


def test_a_named_title_and_coordinates_are_taken_whatever_their_values(put):
    log = check_ins(100, label=lambda row, item: f"L{row}", lat=lambda row, item: row / 2)
    dataset = read_tables(put("log.csv", log), title_column="label")
    assert dataset.items.row(0, named=True) == {"item_id": "i0", "title": "L75", "lat": 37.5, "text": "L75"}


def test_coordinates_in_the_log_are_numbers(put):
    log = check_ins(50, lat=lambda row, item: "north" if row == 7 else 1)
    with pytest.raises(ValueError, match=r"1 row has a lat that is no number, first at line 9 \('north'\)"):
        read_tables(put("log.csv", log))


def test_columns_of_the_log_are_left_to_the_item_file(put):
    log = put("log.csv", check_ins(50, title=lambda row, item: f"Place {item}"))
    items = put("items.csv", "item_id,title\n" + "".join(f"i{item},Item {item}\n" for item in range(25)))
    dataset = read_tables(log, items)
    assert dataset.items["title"][0] == "Item 0" and dataset.notes[0].endswith("not read: 'title'.")


def test_item_columns_never_take_the_place_of_chosen_ones(put):
    log = check_ins(
        100,
        rating=lambda row, item: row % 5 + row % 2,
        weight=lambda row, item: item + 100,
        title=lambda row, item: f"Mr {item}",
        label=lambda row, item: f"L{item}",
    )
    dataset = read_tables(put("log.csv", log), weight_column="rating", title_column="label")
    assert dataset.interactions["weight"].to_list()[:4] == [0.0, 2.0, 2.0, 4.0]
    assert dataset.items.row(3) == ("i3", "L3", "L3")
    assert "not read: 'weight', 'title'." in dataset.notes[-1]
    times = read_tables(put("log.csv", log.replace("timestamp", "when")), timestamp_column="when", title_column="label")
    assert times.interactions["weight"].to_list()[:2] == [100.0, 101.0]
