"""What our systems are called; see `recsys-bench run --help`."""

TWO_STAGE = "two-stage"
RETRIEVAL = "two-stage: retrieval"
BI_ENCODER = "two-stage: bi-encoder"
NO_INTEREST = "two-stage: no interest"
NO_TEXT = "two-stage: no text"
SOURCE = "two-stage: source:"
BUY_AGAIN = "buy-again"
SOURCES = (
    "vector", "similar", "new", "covisitation", "ease", "lexical", "lookalike", "category", "repeat", "popular",
    "recent", "trending",
)  # fmt: skip
