"""Samples of public layouts, 20 to 200 rows each, written after the schemas that docs/public-data.md names.

Every log has the interactions of `INTERACTIONS`: 6 users with 4 to 6 of 8 items each, in the order of time.
"""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

SEQUENCES = [[(user + step * step) % 8 for step in range(4 + user % 3)] for user in range(6)]
START = 1_300_000_000
INTERACTIONS = [
    (user, item, START + 86_400 * (10 * user + step), 1 + (user + item) % 5)
    for user, items in enumerate(SEQUENCES)
    for step, item in enumerate(items)
]
TITLES = ["Café Lumière", "Tea & Co", "Lamp", "Saw", "Jaws", "Up", 'Deep "Dish', "Rope"]


def asin(item: int) -> str:
    return f"B00{item}ABCD{item}E"


def reviewer(user: int) -> str:
    return f"A{user}REVIEWER{user}X"


def venue(item: int) -> str:
    return f"{item:024x}"


def iso(seconds: int, form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime(form)


def put(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def lines(rows: Iterable[object]) -> str:
    return "".join(f"{row}\n" for row in rows)


def json_lines(rows: Iterable[dict[str, object]]) -> str:
    return lines(json.dumps(row, ensure_ascii=False) for row in rows)


def movielens_1m(folder: Path) -> tuple[Path, Path]:
    ratings = lines(f"{user + 1}::{item + 1}::{rating}::{time}" for user, item, time, rating in INTERACTIONS)
    genres = [
        "Drama|Comedy",
        "Animation|Children's|Comedy",
        "",
        "Horror",
        "Horror",
        "Animation",
        "Documentary",
        "Crime",
    ]
    movies = lines(f"{item + 1}::{TITLES[item]} ({1990 + item})::{genres[item]}" for item in range(8))
    return put(folder / "ratings.dat", ratings), put(folder / "movies.dat", movies, "latin-1")


def movielens_25m(folder: Path) -> tuple[Path, Path]:
    rows = [f"{user + 1},{item + 1},{rating - 0.5},{time}" for user, item, time, rating in INTERACTIONS]
    titles = [f'"{TITLES[item]}, The ({1990 + item})"'.replace('Deep "', 'Deep ""') for item in range(7)] + ["Rope"]
    movies = [f"{item + 1},{titles[item]},{'(no genres listed)' if item == 7 else 'Drama|Sci-Fi'}" for item in range(8)]
    return (
        put(folder / "ratings.csv", lines(["userId,movieId,rating,timestamp", *rows])),
        put(folder / "movies.csv", lines(["movieId,title,genres", *movies])),
    )


def movielens_100k(folder: Path) -> tuple[Path, Path]:
    ratings = lines(
        f"{user + 1}\t{item + 1}\t{rating}\t{time - 5 * 10**8}" for user, item, time, rating in INTERACTIONS
    )
    flags = "|".join("1" if place in (3, 5) else "0" for place in range(19))
    movies = lines(f"{item + 1}|{TITLES[item]} ({1990 + item})|01-Jan-1995||http://x|{flags}" for item in range(8))
    return put(folder / "u.data", ratings), put(folder / "u.item", movies, "latin-1")


def recbole(folder: Path) -> tuple[Path, Path]:
    rows = [f"{user + 1}\t{item + 1}\t{rating}\t{time}" for user, item, time, rating in INTERACTIONS]
    items = [f"{item + 1}\t{TITLES[item]}\t{1990 + item}\tDrama Sci-Fi" for item in range(8)]
    return (
        put(folder / "ml.inter", lines(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *rows])),
        put(
            folder / "ml.item",
            lines(["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *items]),
        ),
    )


def recbole_histories(folder: Path) -> tuple[Path, None]:
    rows = [f"{user}\t{' '.join(map(str, items[:place]))}\t{items[place]}"
            for user, items in enumerate(SEQUENCES) for place in range(1, len(items))]  # fmt: skip
    return put(folder / "x.train.inter", lines(["user_id:token\titem_id_list:token_seq\titem_id:token", *rows])), None


def amazon_2023(folder: Path) -> tuple[Path, Path]:
    reviews = json_lines(
        {
            "rating": float(rating), "title": "Good", "text": "I like it<br />much", "images": [{"hi": "u"}],
            "asin": f"V{item}", "parent_asin": asin(item), "user_id": reviewer(user), "timestamp": time * 1000 + 923,
            "helpful_vote": 0, "verified_purchase": True,
        }
        for user, item, time, rating in INTERACTIONS
    )  # fmt: skip
    prices = [12.99, None, "None", "from 5.99", "$1,299.00", "—", 4.5, 3]
    meta = json_lines(
        {
            "main_category": "All Beauty", "title": TITLES[item], "average_rating": 4.8, "rating_number": 10 + item,
            "features": ["Soft.", "Warm"] if item else [], "description": [], "price": prices[item],
            "images": [{"thumb": "u", "large": None}], "videos": [], "store": "Acme &amp; Co" if item else None,
            "categories": ["Beauty", "Hair"] if item else [], "details": {"Brand": "Acme", f"Key {item}": "v"},
            "parent_asin": asin(item), "bought_together": None,
        }
        for item in range(8)
    )  # fmt: skip
    return (
        put(folder / "All_Beauty.jsonl.gz", gzip.compress(reviews.encode())),
        put(folder / "meta_All_Beauty.jsonl.gz", gzip.compress(meta.encode())),
    )


def amazon_2023_core(folder: Path) -> tuple[Path, None]:
    rows = [
        f"{reviewer(user)},{asin(item)},{rating}.0,{time}000,{' '.join(asin(i) for i in SEQUENCES[user])}"
        for user, item, time, rating in INTERACTIONS
    ]
    return put(folder / "All_Beauty.train.csv", lines(["user_id,parent_asin,rating,timestamp,history", *rows])), None


def amazon_2014(folder: Path) -> tuple[Path, Path]:
    reviews = json_lines(
        {
            "reviewerID": reviewer(user), "asin": asin(item), "reviewerName": "J", "helpful": [2, 3],
            "reviewText": "words", "overall": float(rating), "summary": "s", "unixReviewTime": time,
            "reviewTime": "09 13, 2009",
        }
        for user, item, time, rating in INTERACTIONS
    )  # fmt: skip
    meta = [
        {
            "asin": asin(item), "title": TITLES[item], "price": 3.17, "imUrl": "http://x",
            "related": {"also_bought": ["B00JHONN1S"]}, "salesRank": {"Toys & Games": 211836}, "brand": "Coxlures",
            "categories": [["Sports", "Dance"], ["Sports", "Girls' clothes"]], "description": "It&#39;s <b>soft</b>.",
        }
        for item in range(8)
    ]  # fmt: skip
    del meta[2]["title"], meta[2]["price"], meta[2]["brand"], meta[2]["description"], meta[2]["categories"]
    return put(folder / "reviews_Sports_5.json", reviews), put(folder / "meta_Sports.json", lines(map(repr, meta)))


def amazon_2018(folder: Path) -> tuple[Path, Path]:
    reviews = json_lines(
        {
            "overall": float(rating), "verified": True, "reviewTime": "01 1, 2018", "reviewerID": reviewer(user),
            "asin": asin(item), "style": {"Format:": " Kindle"}, "reviewText": "words", "unixReviewTime": time,
        }
        for user, item, time, rating in INTERACTIONS
    )  # fmt: skip
    prices = [
        "$5.99",
        "$1,005.99",
        "",
        "$4.99 - $9.99",
        ".a-box{color:#fff}",
        "$3.00",
        "$2.00",
        "$1.00",
    ]
    meta = json_lines(
        {
            "category": ["Sports", "Dance"], "tech1": "", "description": ["One.", "Two"], "title": TITLES[item],
            "also_buy": [], "image": [], "tech2": "", "brand": "Acme", "feature": ["Soft"], "rank": "1,2 in Toys",
            "also_view": [], "main_cat": "Sports", "similar_item": "", "date": "", "price": prices[item],
            "asin": asin(item),
        }
        for item in range(8)
    )  # fmt: skip
    return (
        put(folder / "Sports_5.json.gz", gzip.compress(reviews.encode())),
        put(folder / "meta_Sports.json.gz", gzip.compress(meta.encode())),
    )


def amazon_2014_ratings(folder: Path) -> tuple[Path, None]:
    rows = [f"{reviewer(user)},{asin(item)},{rating}.0,{time}" for user, item, time, rating in INTERACTIONS]
    return put(folder / "ratings_Beauty.csv", lines(rows)), None


def amazon_2018_ratings(folder: Path) -> tuple[Path, None]:
    rows = [f"{asin(item)},{reviewer(user)},{rating}.0,{time}" for user, item, time, rating in INTERACTIONS]
    return put(folder / "Luxury_Beauty.csv", lines(rows)), None


def yelp(folder: Path) -> tuple[Path, Path]:
    reviews = json_lines(
        {
            "review_id": f"r{time}", "user_id": f"u_{user}", "business_id": f"b-{item}", "stars": float(rating),
            "useful": 0, "funny": 0, "cool": 0, "text": "a\nb", "date": iso(time, "%Y-%m-%d %H:%M:%S"),
        }
        for user, item, time, rating in INTERACTIONS
    )  # fmt: skip
    businesses = json_lines(
        {
            "business_id": f"b-{item}", "name": TITLES[item], "address": "1 Road", "city": "Reno", "state": "CA",
            "postal_code": "93101", "latitude": round(34.4 + item / 100, 2), "longitude": -119.7, "stars": 4.5,
            "review_count": 7, "is_open": 1, "attributes": {"WiFi": "u'no'"} if item else None, "hours": None,
            "categories": "Coffee & Tea, Bars, Bed & Breakfast" if item else None,
        }
        for item in range(8)
    )  # fmt: skip
    return (
        put(folder / "yelp_academic_dataset_review.json", reviews),
        put(folder / "yelp_academic_dataset_business.json", businesses),
    )


def steam(folder: Path) -> tuple[Path, Path]:
    def loose(record: dict[str, object]) -> str:  # Python 2 printed its text as u'...'
        return repr(record).replace("'", "u'", 0) if not record else "{" + ", ".join(
            f"u{key!r}: {('u' if isinstance(value, str) else '') + repr(value)}" for key, value in record.items()
        ) + "}"  # fmt: skip

    reviews = [
        {
            "username": f"Chaos {user}", "hours": 0.1, "products": 41, "product_id": f"72528{item}", "page_order": 0,
            "date": iso(time, "%Y-%m-%d"), "text": "It's fun", "early_access": False, "page": 1,
        }
        for user, item, time, _ in INTERACTIONS
    ]  # fmt: skip
    prices = [4.99, "Free To Play", "Free", 9.99, None, 0.99, 19.99, 2.49]
    games: list[dict[str, object]] = [
        {
            "publisher": "Kotoshiro", "genres": ["Action", "Indie"], "app_name": TITLES[item], "title": TITLES[item],
            "url": "http://x", "release_date": "2018-01-04", "tags": ["Strategy", "Action"], "price": prices[item],
            "early_access": False, "id": f"72528{item}", "developer": "Kotoshiro",
        }
        for item in range(8)
    ]  # fmt: skip
    del games[3]["title"], games[4]["price"]
    games.append({"app_name": "no id", "genres": [], "url": "http://y"})
    return (
        put(folder / "steam_reviews.json.gz", gzip.compress(lines(map(loose, reviews)).encode())),
        put(folder / "steam_games.json.gz", gzip.compress(lines(map(loose, games)).encode())),
    )


def steam_200k(folder: Path) -> tuple[Path, None]:
    rows = []
    for user, item, _, rating in INTERACTIONS:
        title = TITLES[item].replace('"', "")
        rows += [f'{1000 + user},"{title}",purchase,1.0,0', f'{1000 + user},"{title}",play,{rating}.5,0']
    return put(folder / "steam-200k.csv", lines(rows)), None


def s3rec(folder: Path) -> tuple[Path, None]:
    rows = [f"{user + 1} " + " ".join(str(item + 1) for item in items) for user, items in enumerate(SEQUENCES)]
    return put(folder / "Beauty.txt", lines(rows)), None


def sasrec(folder: Path) -> tuple[Path, None]:
    return put(folder / "ml-1m.txt", lines(f"{user + 1} {item + 1}" for user, item, *_ in INTERACTIONS)), None


def lcrec(folder: Path) -> tuple[Path, Path]:
    items = {
        str(item): {"title": TITLES[item], "description": "['One.', 'Two']", "brand": "Acme", "categories": "a,b"}
        for item in range(8)
    }
    histories = {str(user): items for user, items in enumerate(SEQUENCES)}
    return (
        put(folder / "Games.inter.json", json.dumps(histories)),
        put(folder / "Games.item.json", json.dumps(items, indent=2)),
    )


def minionerec(folder: Path, times: bool = True) -> tuple[Path, None]:
    header = "user_id,item_asin,history_item_id,item_id,history_item_title,item_title,history_rating,rating"
    rows = []
    for user, items in enumerate(SEQUENCES):
        for place in range(1, len(items)):
            before = items[:place]
            stamps = [START + 10 * user + step for step in range(place + 1)]
            titles = [TITLES[item] for item in items[: place + 1]]
            cells = [f"A{user}", asin(items[place]), before, items[place], titles[:-1], titles[-1], [5.0] * place, 5.0]
            cells += [stamps[:-1], stamps[-1]] if times else []
            rows.append(",".join('"' + str(cell).replace('"', '""') + '"' for cell in cells))
    header += ",history_timestamp,timestamp" if times else ""
    return put(folder / "Industrial_and_Scientific_5_2016-10-2018-11.csv", lines([header, *rows])), None


def gowalla(folder: Path) -> tuple[Path, None]:
    rows = [
        f"{user}\t{iso(time)}\t{30.2 + item / 100:.2f}\t{-97.7 - item / 100:.2f}\t{22847 + item}"
        for user, item, time, _ in reversed(INTERACTIONS)
    ]
    return put(folder / "loc-gowalla_totalCheckins.txt", lines(rows)), None


def lastfm_1k(folder: Path) -> tuple[Path, None]:
    rows = [
        f"user_{user:06d}\t{iso(time)}\tartist-{item % 2}\tArtist {item % 2}\t"
        f"{f'track-{item}' if item else ''}\t{TITLES[item]}"
        for user, item, time, _ in reversed(INTERACTIONS)
    ]
    return put(folder / "userid-timestamp-artid-artname-traid-traname.tsv", lines(rows)), None


def lastfm_hetrec(folder: Path) -> tuple[Path, Path]:
    rows = [f"{user}\t{item}\t{70 + item}\t{time}000" for user, item, time, _ in INTERACTIONS]
    artists = [f"{item}\t{TITLES[item]}\thttp://x\thttp://y" for item in range(8)]
    return (
        put(folder / "user_taggedartists-timestamps.dat", lines(["userID\tartistID\ttagID\ttimestamp", *rows])),
        put(folder / "artists.dat", lines(["id\tname\turl\tpictureURL", *artists])),
    )


def lastfm_plays(folder: Path) -> tuple[Path, Path]:
    rows = [f"{user}\t{item}\t{100 * rating}" for user, item, _, rating in INTERACTIONS]
    _, artists = lastfm_hetrec(folder)
    return put(folder / "user_artists.dat", lines(["userID\tartistID\tweight", *rows])), artists


def foursquare(folder: Path) -> tuple[Path, None]:
    rows = [
        f"{user}\t{venue(item)}\t4bf58dd8d48988d127951735\t{'Café' if item else 'Bar & Grill'}\t{40.7 + item / 100:.2f}"
        f"\t-74.0\t-240\t{iso(time, '%a %b %d %H:%M:%S +0000 %Y')}"
        for user, item, time, _ in INTERACTIONS
    ]
    return put(folder / "dataset_TSMC2014_NYC.txt", lines(rows), "latin-1"), None


def foursquare_world(folder: Path) -> tuple[Path, Path]:
    rows = [
        f"{user}\t{venue(item)}\t{iso(time, '%a %b %d %H:%M:%S +0000 %Y')}\t120" for user, item, time, _ in INTERACTIONS
    ]
    places = [f"{venue(item)}\t{40.7 + item / 100:.2f}\t{-74.0}\tJazz Club\tUS" for item in range(8)]
    return (
        put(folder / "dataset_TIST2015_Checkins.txt", lines(rows)),
        put(folder / "dataset_TIST2015_POIs.txt", lines(places)),
    )
