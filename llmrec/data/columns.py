"""The only place that spells the column names of llmrec's parquet files."""

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
WEIGHT = "weight"

TITLE = "title"
TEXT = "text"
LAT = "lat"
LON = "lon"

SPLIT = "split"
HISTORY = "history"
TARGET = "target"

NEGATIVES = "negatives"
SOURCES = "sources"
BEAM_RANKS = "beam_ranks"
ORACLE = "oracle"

ALIAS = "alias"
LENGTH = "length"


def code(level: int) -> str:
    """Column that holds the code of one level of a semantic ID, 0-based."""
    return f"code_{level}"
