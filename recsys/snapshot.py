"""Both stages as of one moment: what is known about items and users, and the candidate rows made from it.

Training and serving build the same snapshot from the interactions known at their moment and ask it in the same way,
so that a feature or a score means the same in both. Fitting models is `recsys/pipeline.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from indexing.covisitation import covisitation
from indexing.encoder import BiEncoder
from indexing.history import Histories, HistoryEncoder
from indexing.index import VectorIndex
from indexing.lexical import lexical_neighbours
from indexing.retriever import Candidates, Retriever, build_retriever
from indexing.sources import NeighbourSource
from ranking.features import build_features, item_statistics
from ranking.interest import InterestModel
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.text import history_text


@dataclass(frozen=True, slots=True)
class Towers:
    """Stage 1's trained models and what they made of the catalogue.

    Attributes:
        encoder: the text encoder.
        history_encoder: the user tower.
        item_vectors: float32 (n_items, dim), unit length.
        index: over the item vectors.
        text_neighbours: float32 CSR (n_texts, n_texts), lexical.
    """

    encoder: BiEncoder
    history_encoder: HistoryEncoder
    item_vectors: npt.NDArray[np.float32]
    index: VectorIndex
    text_neighbours: sp.csr_matrix


@dataclass(frozen=True)
class People:
    """The users of one request or one training window, numbered 0..n-1.

    Attributes:
        history: `user_row` Int32, `item_row` Int32, `seconds` Float64; sorted by user, then time, then item.
        moments: `user_row`, `moment` (Unix seconds), one row a user: all of his history lies before it.
        numbers: `user_row` and Float32 columns from the users table, or None.
    """

    history: pl.DataFrame
    moments: pl.DataFrame
    numbers: pl.DataFrame | None = None

    def __len__(self) -> int:
        """Number of users."""
        return self.moments.height

    @cached_property
    def histories(self) -> Histories:
        """The same histories as arrays."""
        lengths = np.bincount(self.history["user_row"].to_numpy(), minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Histories(offsets, self.history["item_row"].to_numpy())

    def slice(self, start: int, stop: int) -> "People":
        """The users `start` to `stop`, renumbered from 0."""
        inside = pl.col("user_row").is_between(start, stop - 1)
        shifted = pl.col("user_row") - pl.lit(start, dtype=pl.Int32)
        numbers = None if self.numbers is None else self.numbers.filter(inside).with_columns(shifted)
        return People(
            self.history.filter(inside).with_columns(shifted),
            self.moments.filter(inside).with_columns(shifted),
            numbers,
        )


def gather_people(
    events: pl.DataFrame,
    user_ids: pl.Series,
    moments: pl.Series | float = math.inf,
    numbers: pl.DataFrame | None = None,
) -> People:
    """Number the users in the order given and collect what is known about them.

    Args:
        events: `user_id`, `item_row`, `seconds`; rows of other users are ignored.
        user_ids: distinct ids, n_users.
        moments: Float64 (n_users,), Unix seconds; or one number for all.
        numbers: `user_id` and Float32 columns, or None.
    """
    people = pl.DataFrame({"user_id": user_ids}).with_row_index("user_row").cast({"user_row": pl.Int32})
    people = people.with_columns(moment=moments)
    history = events.join(people, on="user_id").select("user_row", "item_row", "seconds")
    known = None
    if numbers is not None:
        known = people.join(numbers, on="user_id", how="left").select("user_row", *numbers.columns[1:])
    return People(history.sort("user_row", "seconds", "item_row"), people.select("user_row", "moment"), known)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known about the items at a moment.

    Attributes:
        retriever: the sources.
        statistics: behavioural features of every item.
        covisitation: float32 CSR (n_items, n_items).
    """

    retriever: Retriever
    statistics: pl.DataFrame
    covisitation: sp.csr_matrix


def take_snapshot(
    events: pl.DataFrame,
    moment: float,
    towers: Towers,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    repeats: bool,
    weights: Mapping[str, float] | None = None,
    known_covisitation: sp.csr_matrix | None = None,
) -> Snapshot:
    """Build the sources and the item statistics from all interactions before the moment.

    Args:
        events: `user_id`, `item_row`, `seconds`, in order of time.
        moment: Unix seconds, later than every event.
        towers: trained before.
        catalogue: the items.
        config: depths, windows, neighbours.
        repeats: whether the user's own items are a source.
        weights: of the sources in the blend.
        known_covisitation: the matrix of the same events, where it was stored.
    """
    by_user = events.sort("user_id", "seconds", "item_row")
    lengths = by_user["user_id"].rle().struct.field("len").to_numpy()
    histories = Histories(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), by_user["item_row"].to_numpy())
    pairs = known_covisitation
    if pairs is None:
        pairs = covisitation(histories, len(catalogue), config.covisitation)
    rows = events["item_row"].to_numpy()
    neighbours = _neighbour_sources(pairs, rows, towers, catalogue, config, repeats=repeats)
    retriever = build_retriever(
        config.retriever,
        encoder=towers.history_encoder,
        item_vectors=towers.item_vectors,
        index=towers.index,
        searchable=catalogue.has_text,
        neighbours=neighbours,
        rows=rows,
        weights=weights,
    )
    numbered = events.select(pl.col("user_id").rank("dense").alias("user_row"), "item_row", "seconds")
    statistics = item_statistics(numbered, catalogue.groups, moment, config.features)
    return Snapshot(retriever, statistics.join(catalogue.numbers, on="item_row", how="left"), pairs)


def candidate_frame(
    people: People,
    snapshot: Snapshot,
    interest: InterestModel | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    blocked: npt.NDArray[np.bool_],
    hide_seen: bool,
    n_candidates: int | None = None,
    progress: bool = False,
) -> pl.DataFrame:
    """Retrieve for every user and describe each candidate: stage-1 scores, interest score, behavioural features.

    Returns:
        `user_row`, `item_row`, `stage1_score`, `<source>_score`, `<source>_rank`, `interest_score`, `interest_rank` and
        the columns of `ranking.features.build_features`.
    """
    candidates = snapshot.retriever.retrieve(
        people.histories, blocked=blocked, hide_seen=hide_seen, n_candidates=n_candidates, progress=progress
    )
    frame = to_frame(candidates)
    if interest is not None:
        frame = add_interest(frame, people, interest, catalogue, config, progress=progress)
    frame = build_features(frame, people.history, snapshot.statistics, people.moments, config.features)
    return frame if people.numbers is None else frame.join(people.numbers, on="user_row", how="left")


def to_frame(candidates: Candidates) -> pl.DataFrame:
    """Candidate arrays as a frame; a source that did not propose an item has a null rank."""
    columns = {"user_row": candidates.users.astype(np.int32), "item_row": candidates.items.astype(np.int32)}
    frame = pl.DataFrame(columns).with_columns(stage1_score=pl.Series(candidates.blend))
    named = {}
    for column, name in enumerate(candidates.sources):
        named[f"{name}_score"] = pl.Series(np.ascontiguousarray(candidates.scores[:, column]))
        named[f"{name}_rank"] = pl.Series(np.ascontiguousarray(candidates.ranks[:, column])).fill_nan(None)
    return frame.with_columns(**named)


def add_interest(
    frame: pl.DataFrame,
    people: People,
    interest: InterestModel,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    progress: bool = False,
) -> pl.DataFrame:
    """Score the best `n_interest` candidates of each user with history; the others get null."""
    texts = history_texts(people, catalogue)
    place = pl.int_range(pl.len()).over("user_row")
    known = pl.col("user_row").is_in([row for row, text in enumerate(texts) if text])
    chosen = frame.filter((place < config.n_interest) & known).select("user_row", "item_row")
    scores = interest.score(
        [texts[row] for row in chosen["user_row"]],
        [catalogue.short_text_of(row) for row in chosen["item_row"]],
        progress=progress,
    )
    chosen = chosen.with_columns(interest_score=pl.Series(scores)).with_columns(
        interest_rank=pl.col("interest_score").rank("min", descending=True).over("user_row").cast(pl.Float32)
    )
    return frame.join(chosen, on=["user_row", "item_row"], how="left", maintain_order="left")


def history_texts(people: People, catalogue: Catalogue, *, newest: int = 20) -> list[str]:
    """One text for each user, made of the titles of his newest items; empty without history."""
    titles = catalogue.items["title"]
    histories = people.histories
    return [history_text(titles.gather(histories.of(user)[-newest:][::-1]).to_list()) for user in range(len(people))]


def _neighbour_sources(
    pairs: sp.csr_matrix,
    rows: npt.NDArray[np.int32],
    towers: Towers,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    repeats: bool,
) -> dict[str, NeighbourSource]:
    """Covisitation, lexical and, where repeats are common, the user's own items."""
    n_items = len(catalogue)
    depth = config.retriever
    popularity = np.bincount(rows, minlength=n_items).astype(np.float32)
    identity = np.arange(n_items)
    words = lexical_neighbours(towers.text_neighbours, catalogue.text_rows, popularity, config.lexical)
    sources = {
        "covisitation": NeighbourSource(pairs, identity, depth.history_length, depth.history_power),
        "lexical": NeighbourSource(words, catalogue.text_rows, depth.lexical_length, depth.history_power),
    }
    if repeats:
        itself = sp.eye_array(n_items, dtype=np.float32, format="csr")
        sources["repeat"] = NeighbourSource(itself, identity, depth.history_length, depth.history_power)
    return sources
