"""embed and tokenize: texts, views and codebooks."""

from __future__ import annotations

import numpy as np

from . import Case
from .damage import (
    all_equal,
    column,
    folder,
    inside,
    nan_at,
    parquet,
    removed,
    replaced_by,
    resealed,
    tensors,
    without_manifest,
)

ITEMS, SPLIT = "items.parquet", "split.parquet"


def handmade(change) -> dict:
    """Views made elsewhere: the text view changed, the other one removed."""
    return {"views": without_manifest(tensors("text.safetensors", change), removed("collaborative.safetensors"))}


CASES = {
    "no encoder for the text": Case("embed --catalog @catalog --out @out",
                                    ("text_encoder is needed", "'tfidf'"), given=False),
    "unknown encoder": Case("embed --text-encoder nobody/nothing", ("text_encoder 'nobody/nothing' could not be loaded",
                                                                   "or use 'tfidf'")),
    "unknown view": Case("embed --views text odour", ("views is ['text', 'odour']", "text, collaborative")),
    "text template with an unknown column": Case(
        "embed --text-template {brand}", ("text_template '{brand}'", "items.parquet", "it has no ['brand']")),
    "text template without a column": Case("embed --text-template item", ("text_template 'item'", "it names none")),
    "text template with a lone brace": Case("embed --text-template {text", ("text_template '{text' is malformed",)),
    "text template that picks an attribute": Case("embed --text-template {text.real}", ("text.real",)),
    "text template with a number format": Case("embed --text-template {text:d}", ("text_template '{text:d}'",)),
    "no item with text": Case("embed", ("No item of", "items.parquet has text in ['text']", "leave 'text' out"),
                              {"catalog": resealed(parquet(ITEMS, column("text", "")))}),
    "texts without a word": Case("embed", ("No text of", "has a word to count"),
                                 {"catalog": resealed(parquet(ITEMS, column("text", "…")))}),
    "side fields nowhere": Case("embed --views famae", ("view 'famae' needs a side field", "items.parquet' none is one",
                                                        "leave famae out of `views`"),
                                {"catalog": resealed(parquet(ITEMS, lambda t: t.drop_columns("category")))}),
    "side field with one value": Case("embed --views famae", ("view 'famae' needs a side field", "at least two values"),
                                      {"catalog": resealed(parquet(ITEMS, column("category", "x")))}),
    "more items than the anchors have places": Case(
        "tokenize --catalog @catalog --views @views --method gaoq --branching 2 2 --out @out",
        ("branching [2, 2] has 4 places", "Make the last number", "leave branching out"), given=False),
    "no two items together": Case("embed --views collaborative",
                                  ("No two items co-occur", "leave 'collaborative' out of `views`"),
                                  {"catalog": resealed(parquet(SPLIT, column("history", [])))}),
    "catalogue repeats an item": Case("embed", ("items.parquet repeats item_id 'item-",),
                                      {"catalog": resealed(parquet(ITEMS, lambda t: t.take([0, *range(len(t))])))}),
    "catalogue without titles": Case("embed", ("items.parquet lacks the columns ['title']",),
                                     {"catalog": resealed(parquet(ITEMS, lambda t: t.drop_columns("title")))}),
    "split with an unknown item": Case("embed --views collaborative",
                                       ("item ids are not in", "items.parquet; first: ['ghost'"),
                                       {"catalog": resealed(parquet(SPLIT, column("target", "ghost")))}),
    "catalogue that is no parquet": Case("embed", ("items.parquet", "is not a parquet file", "llmrec prepare"),
                                         {"catalog": resealed(inside(ITEMS, "no parquet"))}),
    "unknown device": Case("tokenize --device abacus", ("Unknown device 'abacus'", "auto, cpu or cuda")),
    "GPU where there is none": Case("tokenize --device cuda", ("torch finds no GPU", "use auto or cpu"),
                                    needs="no gpu"),
    "all vectors equal": Case("tokenize", ("all of the", "item vectors are equal", "Check what the views"),
                              handmade(all_equal)),
    "NaN in a view": Case("tokenize", ("text.safetensors has NaN", "item row 3 (item_id 'item-", "as missing"),
                          handmade(nan_at(3))),
    "no vector at all": Case("tokenize", ("no view has a vector for any item", "other views"), handmade(
        lambda t: {"vectors": t["vectors"] * 0, "missing": np.ones_like(t["missing"])})),
    "catalogue smaller than a codebook": Case("tokenize --codebook-size 64", ("cannot fill codebooks of 64 codes",
                                                                             "Lower codebook_size to at most")),
    "more items than codes": Case("tokenize --num-levels 1 --collision accept",
                                  ("items cannot be told apart by 1 levels of 4 codes", "suffix_ordinal")),
    "view of another length": Case("tokenize", ("text.safetensors has 5 vectors", "`llmrec embed` on this catalogue"),
                                   handmade(lambda t: {name: tensor[:5] for name, tensor in t.items()})),
    "view in another type": Case("tokenize", ("A view has vectors float64", "float32 (num_items, dim)"),
                                 handmade(lambda t: t | {"vectors": t["vectors"].astype(np.float64)})),
    "view without its mask": Case("tokenize", ("text.safetensors holds the tensors ['vectors']", "'missing'"),
                                  handmade(lambda t: {"vectors": t["vectors"]})),
    "view that is no safetensors": Case("tokenize", ("text.safetensors cannot be read as a view", "write it again"),
                                        {"views": without_manifest(inside("text.safetensors", "no tensors"))}),
    "views of another catalogue": Case("tokenize --catalog @other", ("was built from another catalogue than",
                                                                      "run `llmrec embed`")),
    "catalogue of other views": Case("tokenize", ("was built from another catalogue",),
                                     {"catalog": replaced_by("other")}),
    "directory without views": Case("tokenize --views @empty", ("empty' is not a directory that llmrec finished",),
                                    {"empty": folder()}),
    "unknown view name": Case("tokenize --view-names smell", ("view_names asks for ['smell']",
                                                              "holds ['collaborative', 'text']")),
    "view named twice": Case("tokenize --view-names text text", ("name each view once",)),
    "weights of other number": Case("tokenize --view-names text --view-weights 1 2", ("give one weight per name",)),
    "weight that is not positive": Case("tokenize --view-names text --view-weights 0", ("more than 0 is needed",)),
    "sizes of nothing": Case("tokenize --num-levels 0 --codebook-size 1 --iterations 0",
                             ("num_levels is 0", "codebook_size is 1; at least 2", "iterations is 0")),
}  # fmt: skip
