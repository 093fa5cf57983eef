"""Names of the columns of llmrec's parquet files; they are spelled nowhere else."""

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

EXCLUDE = "exclude"
ALLOW = "allow"
ITEMS = "items"
SCORE = "score"
HISTORY_TITLES = "history_titles"
UNKNOWN = "unknown"
FALLBACK = "fallback"

NEGATIVES = "negatives"
SOURCES = "sources"
BEAM_RANKS = "beam_ranks"
ORACLE = "oracle"

ALIAS = "alias"
LENGTH = "length"


def code(level: int) -> str:
    """Name of the column with the codes of one level, 0-based."""
    return f"code_{level}"
