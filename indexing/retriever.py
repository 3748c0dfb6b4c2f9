"""Stage 1: merges the sources into candidate rows.

Owns which sources exist, how deep each is asked and how their lists are blended. Filters arrive as plain masks; what
the candidates are ranked by in the end is stage 2's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from indexing.history import Histories, HistoryEncoder
from indexing.index import VectorIndex
from indexing.sources import (
    Block,
    NeighbourSource,
    Opened,
    PopularitySource,
    Rows,
    Scores,
    Source,
    VectorSource,
)

USERS_PER_BLOCK = 256
MOST_CANDIDATES = 10_000  # LightGBM ranks no longer lists
RANK_OFFSET = 20.0  # the larger, the flatter the blend over the ranks of a list


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverConfig:
    """How deep each source is asked; 0 switches a source off.

    Attributes:
        vector: nearest items to the user vector (FAISS).
        covisitation: items taken soon after the user's items.
        lexical: items whose words are like those of the user's newest items.
        repeat: the user's own items; only where repeats are common and may be shown.
        popular: most taken, all time.
        recent: most taken, newest interactions.
        n_candidates: most candidates per user after merging.
        history_length: newest events that the neighbour sources read.
        lexical_length: newest events that the lexical source reads.
        history_power: see `NeighbourSource.power`.
        recent_share: half-life of `recent`, as a share of all interactions.
    """

    vector: int = 100
    covisitation: int = 100
    lexical: int = 50
    repeat: int = 150
    popular: int = 50
    recent: int = 50
    n_candidates: int = 300
    history_length: int = 500
    lexical_length: int = 10
    history_power: float = 0.7
    recent_share: float = 0.05

    def __post_init__(self) -> None:
        depths = (self.vector, self.covisitation, self.lexical, self.repeat, self.popular, self.recent)
        if min(depths) < 0 or sum(depths) == self.repeat:
            raise ValueError(f"retriever: depths must be 0 or more, and one besides repeat above 0, got {depths}")
        if self.n_candidates > MOST_CANDIDATES:
            raise ValueError(f"retriever: n_candidates={self.n_candidates} must be at most {MOST_CANDIDATES}")
        if min(self.n_candidates, self.history_length, self.lexical_length) < 1:
            raise ValueError(f"retriever: n_candidates and lengths must be at least 1, got {self}")
        if not 0.0 < self.recent_share <= 1.0 or self.history_power < 0.0:
            raise ValueError(f"retriever: recent_share must lie in (0, 1], history_power at 0 or above, got {self}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """What stage 1 proposes, sorted by user, then blend from best to worst, then item row.

    Attributes:
        users: int64 (n,), position of the user in the histories asked for.
        items: int64 (n,), rows of the items table.
        sources: names of the columns of `scores` and `ranks`.
        scores: float32 (n, n_sources), every source's score of every pair.
        ranks: float32 (n, n_sources), place in that source's own list from 1; NaN where it did not propose the item.
        blend: float32 (n,), weighted reciprocal ranks.
    """

    users: Rows
    items: Rows
    sources: tuple[str, ...]
    scores: Scores
    ranks: Scores
    blend: Scores

    @classmethod
    def concatenate(cls, parts: list["Candidates"]) -> "Candidates":
        """Blocks of users, already numbered apart, one after the other."""
        return cls(
            np.concatenate([part.users for part in parts]),
            np.concatenate([part.items for part in parts]),
            parts[0].sources,
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate([part.blend for part in parts]),
        )


class Retriever:
    """Sources of one moment, ready to be asked."""

    def __init__(
        self,
        sources: Mapping[str, tuple[Source, int]],
        *,
        n_candidates: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Take the sources as they are.

        Args:
            sources: name -> (source, how many items it may propose per user).
            n_candidates: most candidates per user after merging.
            weights: worth of each source's ranks in the blend; 1 where not named.

        Raises:
            ValueError: there is no source.
        """
        if not sources:
            raise ValueError(
                "retriever: no source is left to propose items; give at least one of vector, covisitation, lexical, "
                "popular and recent a depth above 0 (repeat is only there where repeats are common)"
            )
        self.sources = dict(sources)
        self.n_candidates = n_candidates
        self.weights = dict(weights or {})

    def retrieve(
        self,
        histories: Histories,
        *,
        blocked: npt.NDArray[np.bool_],
        hide_seen: bool,
        n_candidates: int | None = None,
        progress: bool = False,
    ) -> Candidates:
        """Candidates for every user.

        Args:
            histories: the users; one without history gets what is popular.
            blocked: bool (n_items,), items that nobody may be shown.
            hide_seen: whether a user's own items are left out.
            n_candidates: more than the configured number asks every source for more, in proportion.
            progress: show a bar on stderr.

        Returns:
            At most `n_candidates` rows per user, fewer where fewer items may be shown.
        """
        most = n_candidates or self.n_candidates
        factor = max(1, -(-most // self.n_candidates))
        starts = range(0, max(len(histories), 1), USERS_PER_BLOCK)
        parts = []
        for start in tqdm(starts, desc="retrieve", disable=not progress, mininterval=1.0):
            stop = min(start + USERS_PER_BLOCK, len(histories))
            block = Block(histories.slice(start, stop), blocked, hide_seen)
            parts.append(self._retrieve_block(block, most, factor, first_user=start))
        return Candidates.concatenate(parts)

    def _retrieve_block(self, block: Block, most: int, factor: int, *, first_user: int) -> Candidates:
        depths = {name: n * factor for name, (_, n) in self.sources.items()}
        opened = {name: source.open(block, depths[name]) for name, (source, _) in self.sources.items()}
        lists = [self._lists(opened, depths, block, user) for user in range(len(block.histories))]
        users = np.repeat(np.arange(len(lists)), [len(items) for items, _ in lists])
        items = np.concatenate([items for items, _ in lists] or [np.zeros(0, dtype=np.int64)])
        ranks = np.concatenate([ranks for _, ranks in lists] or [self._no_ranks()])
        scores = np.stack([source.score(users, items) for source in opened.values()], axis=1)
        blend = self._blend(ranks)
        order = np.lexsort((items, -blend, users))
        order = order[_place(users[order]) < most]
        return Candidates(
            users[order] + first_user, items[order], tuple(opened), scores[order], ranks[order], blend[order]
        )

    def _no_ranks(self) -> Scores:
        return np.zeros((0, len(self.sources)), dtype=np.float32)

    def _lists(
        self, opened: Mapping[str, Opened], depths: Mapping[str, int], block: Block, user: int
    ) -> tuple[Rows, Scores]:
        """Union of the sources' lists for one user, and each item's place in each list."""
        hidden = block.hidden(user)
        lists = [opened[name].top(user, hidden, n) for name, n in depths.items()]
        items = np.unique(np.concatenate(lists))
        ranks = np.full((len(items), len(lists)), np.nan, dtype=np.float32)
        for column, rows in enumerate(lists):
            ranks[np.searchsorted(items, rows), column] = np.arange(1, len(rows) + 1)
        return items, ranks

    def _blend(self, ranks: Scores) -> Scores:
        """Weighted reciprocal rank fusion (Source: Cormack, Clarke and Buettcher 2009), float32 (n,)."""
        weights = np.array([self.weights.get(name, 1.0) for name in self.sources], dtype=np.float32)
        return np.asarray(np.nan_to_num(weights / (RANK_OFFSET + ranks)).sum(axis=1), dtype=np.float32)


def _place(users: Rows) -> Rows:
    """0, 1, 2, ... within each run of equal users."""
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    return np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users))))


def recency_weighted_counts(rows: npt.NDArray[np.int32], n_items: int, *, half_life: float) -> Scores:
    """How much each item was taken of late.

    Args:
        rows: item rows of all interactions, oldest first.
        n_items: rows of the items table.
        half_life: interactions after which an interaction counts half.

    Returns:
        float32 (n_items,).
    """
    age = np.arange(len(rows))[::-1] / half_life
    return np.bincount(rows, weights=0.5**age, minlength=n_items).astype(np.float32)


def build_retriever(
    config: RetrieverConfig,
    *,
    encoder: HistoryEncoder,
    item_vectors: Scores,
    index: VectorIndex,
    searchable: npt.NDArray[np.bool_],
    neighbours: Mapping[str, NeighbourSource],
    rows: npt.NDArray[np.int32],
    weights: Mapping[str, float] | None = None,
) -> Retriever:
    """Put the sources of one moment together, leaving out those that are switched off.

    Args:
        config: depths.
        encoder: the user tower.
        item_vectors: float32 (n_items, dim).
        index: over the same vectors.
        searchable: bool (n_items,), items that have a text to be found by.
        neighbours: sources "covisitation", "lexical", "repeat"; those not given are off.
        rows: item rows of all interactions so far, oldest first.
        weights: see `Retriever`.
    """
    n_items = len(item_vectors)
    recent = recency_weighted_counts(rows, n_items, half_life=max(1.0, config.recent_share * len(rows)))
    counts = np.bincount(rows, minlength=n_items).astype(np.float32)
    sources: dict[str, Source] = {
        "vector": VectorSource(encoder, item_vectors, index, searchable),
        **neighbours,
        "popular": PopularitySource.of(counts),
        "recent": PopularitySource.of(recent),
    }
    depths = {name: getattr(config, name) for name in sources}
    used = {name: (source, depths[name]) for name, source in sources.items() if depths[name] > 0}
    return Retriever(used, n_candidates=config.n_candidates, weights=weights)
