"""prepare: raw files, datasets and splits."""

from __future__ import annotations

import lzma

from . import Case
from .damage import folder, replaced, text

LOG = "user_id,item_id,timestamp\n"

CASES = {
    "missing column": Case("prepare", ("log.csv", "lacks the columns 'timestamp' (--timestamp-column)", "it has "),
                           {"log.csv": replaced("timestamp", "when")}),
    "missing title column": Case("prepare", ("items.csv", "'title' (--title-column)"),
                                 {"items.csv": replaced("title", "label")}),
    "two options name one column": Case("prepare --timestamp-column item_id", ("log.csv", "name one column twice")),
    "duplicate item id": Case("prepare", ("items.csv", "repeats an item_id", "line 3 ('a')", "keep one row per item"),
                              {"items.csv": replaced("b,", "a,")}),
    "interaction with an unknown item": Case(
        "prepare",
        ("log.csv", "names an item that", "items.csv lacks", "line 2 ('ghost')", "give --unknown-items keep or"),
        {"log.csv": replaced("u,a,", "u,ghost,")}),
    "unknown items that are no more than another form": Case(
        "prepare", ("line 2 ('a ')", "'a ' looks like 'a' there", "in one form in both files", "--unknown-items"),
        {"log.csv": replaced("u,a,", 'u,"a ",')}),
    "nothing left without unknown items": Case(
        "prepare --unknown-items drop", ("2 of 2 interactions", "Nothing is left", "--item-file-column"),
        {"log.csv": text(LOG + "u,ghost,1\nu,spook,2\n")}),
    "unknown items without an item file": Case(
        "prepare --interactions @log.csv --unknown-items drop --out @out",
        ("--unknown-items goes with --interactions and --items",), given=False),
    "interaction without a user": Case("prepare", ("log.csv", "empty user_id", "line 2", "drop the rows"),
                                       {"log.csv": replaced("u,a,", ",a,")}),
    "time that is none": Case("prepare", ("log.csv", "no readable timestamp", "line 2 ('soon')", "ISO date"),
                              {"log.csv": replaced("u,a,1", "u,a,soon")}),
    "time in another order": Case("prepare", ("log.csv", "line 2 ('03/04/2012')", "ISO date"),
                                  {"log.csv": replaced("u,a,1", "u,a,03/04/2012")}),
    "weight that is no number": Case("prepare", ("log.csv", "weight that is no number", "('heavy')"),
                                     {"log.csv": text("user_id,item_id,timestamp,weight\nu,a,1,heavy\n")}),
    "not UTF-8": Case("prepare", ("items.csv", "not UTF-8: line 2", "iconv -f windows-1252"),
                      {"items.csv": text("item_id,title\na,Amélie\n".encode("latin1"))}),
    "row with too many cells": Case("prepare", ("log.csv", "line 3 has 5 cells", "in double quotes"),
                                    {"log.csv": text(LOG + "u,a,1\nu,b,2,3,4\n")}),
    "empty file": Case("prepare", ("log.csv", "is empty", "header and rows"), {"log.csv": text("")}),
    "header alone": Case("prepare", ("log.csv", "has no rows"), {"log.csv": text(LOG)}),
    "absent file": Case("prepare --interactions @absent.csv", ("absent.csv' does not exist", "check the path")),
    "directory as a file": Case("prepare --interactions @there.csv", ("there.csv", "has no file"),
                                {"there.csv": folder()}),
    "Excel file": Case("prepare --interactions @log.xlsx", ("log.xlsx' is an Excel file", "save it as"),
                       {"log.xlsx": text("a\tb\n")}),
    "title that is a record": Case("prepare", ("items.csv", "column title holds records", "a title is text"),
                                   {"items.csv": text("item_id,title\na,{'name': 'Tea'}\nb,{'name': 'Jam'}\n")}),
    "latitude that is no number": Case("prepare", ("items.csv", "lat that is no number", "line 3 ('north')"),
                                       {"items.csv": text("item_id,title,lat\na,x,\"1,5\"\nb,y,north\nc,z,nan\n")}),
    "pairs of histories in no order": Case(
        "prepare", ("log.csv", "does not end with the item of the pair before it", "one row per interaction"),
        {"log.csv": text('user_id,history_item_id,item_id\nu,"[1, 2]",3\nu,[1],2\n')}),
    "half a JSON of histories": Case("prepare --interactions @inter.json", ("inter.json: it is not JSON", "get it"),
                                     {"inter.json": text('{"0": [1, 2], "1": [2')}),
    "damaged parquet": Case("prepare --interactions @log.parquet",
                            ("log.parquet", "not a readable table", "export it again"),
                            {"log.parquet": text(b"PAR1 and no more")}),
    "cut .xz": Case("prepare --interactions @log.csv.xz", ("log.csv.xz", "cut or damaged .xz file", "get it again"),
                    {"log.csv.xz": text(lzma.compress(LOG.encode() * 99)[:-20])}),
    "problems of both files at once": Case(
        "prepare", ("repeats an item_id", "no readable timestamp", "names an item that"),
        {"items.csv": replaced("b,", "a,"), "log.csv": text(LOG + "u,a,soon\nu,ghost,2\n")}),
    "unknown dataset": Case("prepare --dataset movietweeting --out @out",
                            ("unknown dataset 'movietweeting'", "did you mean 'movietweetings'", "--interactions"),
                            given=False),
    "no dataset and no file": Case("prepare --out @out", ("either --dataset", "or --interactions"), given=False),
    "dataset and file": Case("prepare --dataset simulated", ("either --dataset", "or --interactions", "not both")),
    "dataset that is nowhere": Case(
        "prepare --dataset minionerec-industrial --split published --k-core 0 --out @out",
        ("No download is known", "item.json", "set LLMREC_DATA", "--dataset simulated"), {"nothing": folder()},
        given=False, env={"LLMREC_DATA": "@nothing", "LLMREC_CACHE": "@nothing"}),
    "published split of own files": Case("prepare --split published", ("no published split", "--split leave_one_out")),
    "temporal split without times": Case(
        "prepare --dataset amazon14-beauty --split temporal --out @out",
        ("'amazon14-beauty' has no times", "--split leave_one_out"), given=False, needs="data"),
    "temporal split of too little": Case("prepare --split temporal", ("leave no ['valid']", "Give more data")),
    "nothing left of the k-core": Case("prepare --k-core 9",
                                       ("No user and item have 9 interactions", "lower --k-core")),
    "nobody with three interactions": Case("prepare", ("leave no ['valid', 'test'] example", "3 interactions"),
                                           {"log.csv": text(LOG + "u,a,1\nu,b,2\n")}),
    "negative sizes": Case("prepare --dataset simulated --num-users 0 --k-core -1 --max-history 0 --out @out",
                           ("num_users is 0", "k_core is -1; at least 0", "max_history is 0; at least 1"),
                           given=False),
}  # fmt: skip
