"""Stage 1: merges the sources into candidate rows.

Owns which sources exist, how deep each is asked and how their lists are blended. Filters arrive as plain masks; what
the candidates are ranked by in the end is stage 2's business.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexing.blocks import map_blocks
from indexing.history import Histories, HistoryEncoder
from indexing.index import VectorIndex
from indexing.neighbour_cache import NeighbourCache
from indexing.sources import (
    Block,
    Mask,
    Opened,
    PopularitySource,
    Rows,
    Scores,
    SimilarSource,
    Source,
    VectorSource,
)
from indexing.sparse import distinct, place_in_runs, positions_of
from indexing.trending import recency_weighted_counts

USERS_PER_BLOCK = 256
MOST_CANDIDATES = 10_000  # LightGBM ranks no longer lists
RANK_OFFSET = 20.0  # the larger, the flatter the blend over the ranks of a list


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverConfig:
    """How deep each source is asked; 0 switches a source off.

    Attributes:
        vector: nearest items to the user vector (FAISS).
        covisitation: items taken soon after the user's items.
        ease: items that a linear model of who took what expects; only where the catalogue fits (`EaseConfig`).
        lexical: items whose words are like those of the user's newest items.
        lookalike: items whose words, and new items whose vectors, are like those of what is taken soon after the
            user's newest items; only beside covisitation. It finds new items by the company of those like them.
        similar: items whose vectors are nearest to those of the user's newest items.
        new: items that nobody took yet, as vector, lexical, lookalike and similar together find them; only where such
            items are commonly taken.
        category: taken of late in the categories of the user's newest items; only where there are categories.
        repeat: the user's own items; only where repeats are common and may be shown.
        popular: most taken, all time.
        recent: most taken, newest interactions.
        trending: most taken, the very newest interactions.
        n_candidates: most candidates per user after merging.
        lookalike_of_new: how many times its weight in the blend lookalike has for items whose text nobody took: the
            weight is learnt from items with behaviour, of which it says little that other sources do not.
        history_length: newest events that category and repeat read.
        neighbour_length: newest events that covisitation and EASE read; what they cost grows with it.
        lexical_length: newest events that lexical and lookalike read.
        similar_length: newest events whose neighbours `similar` looks up.
        history_power: see `NeighbourSource.power`.
        lasting_power: the same for EASE and category, which show what a user likes at large rather than now.
        recent_share: half-life of `recent` and `category`, as a share of all interactions.
        trending_share: half-life of `trending`, as a share of all interactions.
    """

    vector: int = 200
    covisitation: int = 200
    ease: int = 200
    lexical: int = 100
    lookalike: int = 100
    similar: int = 100
    new: int = 200
    category: int = 100
    repeat: int = 150
    popular: int = 50
    recent: int = 50
    trending: int = 50
    n_candidates: int = 300
    lookalike_of_new: float = 3.0
    history_length: int = 500
    neighbour_length: int = 100
    lexical_length: int = 10
    similar_length: int = 3
    history_power: float = 0.7
    lasting_power: float = 0.3
    recent_share: float = 0.05
    trending_share: float = 0.01

    def __post_init__(self) -> None:
        depths = {name: getattr(self, name) for name in SOURCES}
        alone = sum(depths.values()) - sum(depths[name] for name in ("repeat", "new", "lookalike"))
        if min(depths.values()) < 0 or alone == 0:
            raise ValueError(
                f"retriever: depths must be 0 or more, and one besides repeat, new and lookalike above 0, got {self}"
            )
        if self.n_candidates > MOST_CANDIDATES:
            raise ValueError(f"retriever: n_candidates={self.n_candidates} must be at most {MOST_CANDIDATES}")
        lengths = (self.history_length, self.neighbour_length, self.lexical_length, self.similar_length)
        if min(self.n_candidates, *lengths) < 1:
            raise ValueError(f"retriever: n_candidates and lengths must be at least 1, got {self}")
        if not all(0.0 < share <= 1.0 for share in (self.recent_share, self.trending_share)):
            raise ValueError(f"retriever: recent_share and trending_share must lie in (0, 1], got {self}")
        if min(self.history_power, self.lasting_power, self.lookalike_of_new) < 0.0:
            raise ValueError(
                f"retriever: history_power, lasting_power and lookalike_of_new must be 0 or more, got {self}"
            )

    @property
    def finding_new(self) -> tuple[str, ...]:
        """The sources that `new` asks; empty where it, or all of them, are switched off."""
        needed = {"lookalike": self.covisitation}  # it starts from there
        return tuple(name for name in FINDING_NEW if self.new > 0 and getattr(self, name) > 0 and needed.get(name, 1))


SOURCES = (
    "vector",
    "covisitation",
    "ease",
    "lexical",
    "lookalike",
    "similar",
    "new",
    "category",
    "repeat",
    "popular",
    "recent",
    "trending",
)
FINDING_NEW = ("vector", "lexical", "lookalike", "similar")
"""Sources that know an item by its text alone."""


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
        item_weights: Mapping[str, Scores] | None = None,
    ) -> None:
        """Take the sources as they are.

        Args:
            sources: name -> (source, how many items it may propose per user).
            n_candidates: most candidates per user after merging.
            weights: worth of each source's ranks in the blend; 1 where not named.
            item_weights: how many times that some items are worth, float32 (n_items,) a source; 1 where not named.

        Raises:
            ValueError: there is no source.
        """
        if not sources:
            raise ValueError(
                "retriever: no source is left to propose items; give at least one of vector, covisitation, lexical, "
                "similar, popular, recent and trending a depth above 0 (the others are not there for all data)"
            )
        self.sources = dict(sources)
        self.n_candidates = n_candidates
        self.weights = dict(weights or {})
        self.item_weights = dict(item_weights or {})

    def weighted(self, weights: Mapping[str, float]) -> "Retriever":
        """The same sources with other worths in the blend."""
        return Retriever(self.sources, n_candidates=self.n_candidates, weights=weights, item_weights=self.item_weights)

    def only(self, names: Collection[str]) -> "Retriever":
        """Some of the sources, in their order."""
        chosen = {name: source for name, source in self.sources.items() if name in names}
        return Retriever(chosen, n_candidates=self.n_candidates, weights=self.weights, item_weights=self.item_weights)

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

        def found(start: int) -> Candidates:
            stop = min(start + USERS_PER_BLOCK, len(histories))
            block = Block(histories.slice(start, stop), blocked, hide_seen)
            return self._retrieve_block(block, most, factor, first_user=start)

        return Candidates.concatenate(map_blocks(found, starts, desc="retrieve", progress=progress))

    def _retrieve_block(self, block: Block, most: int, factor: int, *, first_user: int) -> Candidates:
        opened = [source.open(block, n * factor) for source, n in self.sources.values()]
        users, items, ranks = _union(opened, block)
        blend = self._blend(items, ranks)
        order = _best_first(users, blend, most)
        kept = np.sort(order)  # sources find pairs fastest in ascending order
        scores = np.stack([each.score(users[kept], items[kept]) for each in opened], axis=1)
        place = np.empty(len(users), dtype=np.int64)
        place[kept] = np.arange(len(kept))
        scores = scores[place[order]]
        users = users[order] + first_user
        return Candidates(users, items[order], tuple(self.sources), scores, ranks[order], blend[order])

    def _blend(self, items: Rows, ranks: Scores) -> Scores:
        """Every source's part in the blend, summed, float32 (n,)."""
        worth = _worths(ranks, np.array([self.weights.get(name, 1.0) for name in self.sources]))
        for column, name in enumerate(self.sources):
            if name in self.item_weights:
                worth[:, column] *= self.item_weights[name][items]
        return np.asarray(worth.sum(axis=1), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class NewSource:
    """Items that nobody took yet: the blend of what several sources say about them alone, all worth the same.

    Attributes:
        sources: asked for nothing else.
        items: bool (n_items,), those items.
    """

    sources: tuple[Source, ...]
    items: Mask

    def open(self, block: Block, n: int) -> Opened:
        """The `n` best of the lists of `n` of all sources; a pair outside them scores zero."""
        alone = block.only(self.items)
        users, items, ranks = _union([source.open(alone, n) for source in self.sources], block)
        blend = _worths(ranks, np.ones(len(self.sources))).sum(axis=1)
        keys, best = block.keys(users, items), _best_first(users, blend, n)

        def score(asked: Rows, rows: Rows) -> Scores:
            places = positions_of(keys, block.keys(asked, rows))
            return np.append(blend, np.float32(0.0))[places]

        return Opened(users[best], items[best], score)


def _worths(ranks: Scores, weights: npt.NDArray[np.floating]) -> Scores:
    """Weighted reciprocal ranks (Source: Cormack, Clarke and Buettcher 2009), float32 (n, n_sources)."""
    return np.nan_to_num(weights.astype(np.float32) / (RANK_OFFSET + ranks))


def _best_first(users: Rows, blend: Scores, most: int) -> Rows:
    """Rows in order of user, then blend from best to worst, at most so many of a user; equal ones stay as they are."""
    order = np.lexsort((-blend, users))
    return order[place_in_runs(users[order]) < most]


def _union(opened: list[Opened], block: Block) -> tuple[Rows, Rows, Scores]:
    """Each proposed (user, item) pair once, by user, then item, and its place in each source's list."""
    keys = [block.keys(each.users, each.items) for each in opened]
    union = distinct(np.concatenate(keys))
    ranks = np.full((len(union), len(opened)), np.nan, dtype=np.float32)
    for column, (each, key) in enumerate(zip(opened, keys, strict=True)):
        ranks[np.searchsorted(union, key), column] = place_in_runs(each.users) + 1
    users, items = np.divmod(union, max(block.n_items, 1))
    return users, items, ranks


def build_retriever(
    config: RetrieverConfig,
    *,
    encoder: HistoryEncoder,
    item_vectors: Scores,
    index: VectorIndex,
    searchable: npt.NDArray[np.bool_],
    neighbours: Mapping[str, Source],
    rows: npt.NDArray[np.int32],
    weights: Mapping[str, float] | None = None,
    item_weights: Mapping[str, Scores] | None = None,
    new: Mask | None = None,
) -> Retriever:
    """Put the sources of one moment together, leaving out those that are switched off.

    Args:
        config: depths.
        encoder: the user tower.
        item_vectors: float32 (n_items, dim).
        index: over the same vectors.
        searchable: bool (n_items,), items that have a text to be found by.
        neighbours: sources "covisitation", "ease", "lexical", "lookalike", "category", "repeat"; those not given are
            off.
        rows: item rows of all interactions so far, oldest first.
        weights, item_weights: see `Retriever`.
        new: bool (n_items,), items that nobody took, where these are a source of their own.
    """
    n_items = len(item_vectors)

    def similar() -> SimilarSource:
        nearest = NeighbourCache(item_vectors, index, config.similar + 1)  # an item is its own nearest
        return SimilarSource(nearest, searchable, config.similar_length, config.history_power)

    sources: dict[str, Source] = {
        "vector": VectorSource(encoder, item_vectors, index, searchable),
        "similar": similar(),
        "popular": PopularitySource.of(np.bincount(rows, minlength=n_items).astype(np.float32)),
        "recent": PopularitySource.of(recent_counts(rows, n_items, config.recent_share)),
        "trending": PopularitySource.of(recent_counts(rows, n_items, config.trending_share)),
        **neighbours,
    }
    if new is not None and config.finding_new:
        finding = {name: sources[name] for name in config.finding_new if name in sources}
        if "similar" in finding:
            finding["similar"] = similar()  # which remembers neighbours among the new ones only
        sources["new"] = NewSource(tuple(finding.values()), new)
    depths = {name: getattr(config, name) for name in SOURCES if name in sources}
    used = {name: (sources[name], n) for name, n in depths.items() if n > 0}
    return Retriever(used, n_candidates=config.n_candidates, weights=weights, item_weights=item_weights)


def recent_counts(rows: npt.NDArray[np.int32], n_items: int, share: float) -> Scores:
    """`recency_weighted_counts` with a half-life that is a share of all interactions."""
    return recency_weighted_counts(rows, n_items, half_life=max(1.0, share * len(rows)))
