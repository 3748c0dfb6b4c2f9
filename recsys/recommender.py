"""The door: `Recommender`.

Owns the public verbs, checks what comes in and gives back frames in the caller's library. What a fit does is
`recsys/pipeline.py`; what a candidate looks like is `recsys/snapshot.py`.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import narwhals as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.rerank import top_k
from recsys import pipeline
from recsys.arguments import (
    FilterSeen,
    OnUnknown,
    asked_alone,
    check_on_unknown,
    distinct_texts,
    hide_seen,
    id_series,
    positive,
)
from recsys.bundle import open_bundle, write_bundle
from recsys.catalogue import user_numbers
from recsys.config import RecommenderConfig, config_from_dict
from recsys.device import resolve_device
from recsys.errors import InvalidData, NotFitted, UnknownUsers
from recsys.fitted import Fitted, read_fitted, read_state, write_fitted
from recsys.lists import best_items, with_source
from recsys.nearest import nearest_to_items, nearest_to_texts
from recsys.schema import Table, to_caller, validate, validate_histories
from recsys.snapshot import People, gather_people, to_frame

log = logging.getLogger("recsys")


class Recommender:
    """A two-stage recommender: retrieval by vectors and behaviour, ranking by interest and behaviour.

    Example:
        >>> recommender = Recommender().fit(interactions, items)
        >>> recommender.recommend(["ada", "bob"], k=10)
    """

    def __init__(self, config: RecommenderConfig | None = None) -> None:
        self.config = config or RecommenderConfig()
        self._fitted: Fitted | None = None
        self._implementation = nw.Implementation.POLARS

    def fit(self, interactions: Table, items: Table, users: Table | None = None) -> Self:
        """Learn from two tables, or three.

        Args:
            interactions: who took what when: `user_id`, `item_id`, `timestamp`, optionally `event`, `value`, `weight`.
            items: what there is: `item_id`, `title`, optionally `description`, `categories`, `price`, ... .
            users: optional `user_id` and further columns.

        Returns:
            The recommender itself, fitted.

        Raises:
            InvalidData: a table breaks a rule; nothing has been learnt or changed then.
            DeviceUnavailable: the configured device is not there.
        """
        device = resolve_device(self.config.device)
        tables = validate(interactions, items, users, unknown_items=self.config.unknown_items)
        self._fitted = pipeline.fit(tables, self.config, device)
        self._implementation = tables.implementation
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mapped, dropped and decided at fit, as sentences."""
        return self._state.notes

    @property
    def users(self) -> pl.Series:
        """Ids of all users with history, in order."""
        return self._state.events["user_id"].unique().sort()

    @property
    def items(self) -> pl.Series:
        """Ids of the catalogue, in order."""
        return self._state.catalogue.items["item_id"]

    def recommend(
        self,
        users: Iterable[Any],
        k: int = 10,
        *,
        filter_seen: FilterSeen = "auto",
        allow_items: Iterable[Any] | None = None,
        deny_items: Iterable[Any] | None = None,
        on_unknown: OnUnknown = "fallback",
        details: bool = False,
    ) -> Any:
        """Lists for users by id.

        Args:
            users: user ids; repetitions count once.
            k: list length.
            filter_seen: whether items that a user has taken are left out; "auto" follows the data (see `notes`).
            allow_items: only these may be shown.
            deny_items: these may not.
            on_unknown: what happens to users without history: "fallback" gives them what is popular, "warn" also logs a
                warning, "raise" refuses.
            details: add `source`, `stage1_score`, `interest_score` and `is_fallback`.

        Returns:
            `user_id`, `item_id`, `rank` (from 1, best first), `score` (higher is better; comparable within one user),
            in the order of `users`, in the frame library of the interactions. Fewer than `k` rows for a user are
            logged.

        Raises:
            NotFitted: before `fit`.
            InvalidData: ids of another type than at fit, or an unknown item in a list.
            InvalidConfig: `k` below 1, or another word than those above.
            UnknownUsers: with `on_unknown="raise"`.
        """
        ids = self._user_ids(users)
        self._report_unknown(ids, on_unknown)
        people = self._known_people(ids)
        return self._lists(people, ids, k, filter_seen, self._blocked(allow_items, deny_items), details=details)

    def recommend_for(
        self,
        histories: Table | Mapping[Any, Sequence[Any]],
        k: int = 10,
        *,
        filter_seen: FilterSeen = "auto",
        allow_items: Iterable[Any] | None = None,
        deny_items: Iterable[Any] | None = None,
        details: bool = False,
    ) -> Any:
        """Lists for people who need not have been there at fit, from what they took; nothing is retrained.

        Args:
            histories: a mapping from any user id to item ids, oldest first, or an interactions table whose `timestamp`
                may be missing.
            k: see `recommend`, as are the other arguments.

        Returns:
            As `recommend`, users in order of their ids. Users of whom no item is known get what is popular.
        """
        state = self._state
        given = validate_histories(histories, state.catalogue.items)
        events, ids = pipeline.to_events(given.interactions, state.catalogue, state.towers.event_kinds), given.users
        people = self._people(events if given.timed else self._ending_now(events), ids)
        return self._lists(people, ids, k, filter_seen, self._blocked(allow_items, deny_items), details=details)

    def retrieve(
        self,
        users: Iterable[Any],
        n_candidates: int = 100,
        *,
        filter_seen: FilterSeen = "auto",
        sources: Iterable[str] | None = None,
        allow_items: Iterable[Any] | None = None,
        deny_items: Iterable[Any] | None = None,
    ) -> Any:
        """Stage 1 alone.

        Args:
            users: user ids.
            n_candidates: candidates per user.
            filter_seen: see `recommend`.
            sources: names of the sources to ask, such as "vector" for one search of the index; None asks all.
            allow_items: see `recommend`.
            deny_items: see `recommend`.

        Returns:
            `user_id`, `item_id`, `rank`, `score` (the blend of the sources), `source` (who proposed it).
        """
        state = self._state
        ids = self._user_ids(users)
        retriever = state.snapshot.retriever
        found = (retriever if sources is None else asked_alone(retriever, sources)).retrieve(
            self._known_people(ids).histories,
            blocked=self._blocked(allow_items, deny_items),
            hide_seen=hide_seen(filter_seen, auto=state.hide_seen),
            n_candidates=positive(n_candidates, "n_candidates"),
            progress=self.config.progress and len(ids) > 1,
        )
        frame = to_frame(found).with_columns(score=pl.col("stage1_score"))
        ranked = with_source(top_k(frame, n_candidates))
        self._report_short(ranked, len(ids), n_candidates)
        return self._named(ranked, ids, ["user_id", "item_id", "rank", "score", "source"])

    def similar_items(self, items: Iterable[Any], k: int = 10) -> Any:
        """Nearest items by their vectors, which hold text and behaviour.

        Args:
            items: item ids.
            k: neighbours per item.

        Returns:
            `item_id`, `similar_item_id`, `rank`, `score` (cosine), never the item itself; nothing for an item with
            neither text nor behaviour. Repeated ids count once.

        Raises:
            InvalidData: an id that is not in the catalogue.
        """
        state = self._state
        asked = pl.Series(self._item_rows(items, "items")).unique(maintain_order=True).to_numpy()
        rows = asked[state.towers.searchable[asked]]
        best = nearest_to_items(state.towers, state.catalogue, rows, positive(k, "k"))
        self._report_short(best, len(asked), k)
        named = best.with_columns(
            item_id=state.catalogue.ids_of(rows[best["user_row"].to_numpy()]),
            similar_item_id=state.catalogue.ids_of(best["item_row"].to_numpy()),
        )
        return to_caller(named.select("item_id", "similar_item_id", "rank", "score"), self._implementation)

    def search(self, texts: Sequence[str], k: int = 10) -> Any:
        """Items for people of whom only a text is known: a query, a profile, a wish.

        Args:
            texts: in any language that the encoder or the catalogue's own words cover.
            k: items per text.

        Returns:
            `text`, `item_id`, `rank`, `score` (cosine), in the order of the texts. Repeated texts count once.

        Raises:
            InvalidData: a text is not a string.
        """
        state = self._state
        asked = distinct_texts(texts)
        best = nearest_to_texts(state.towers, state.catalogue, asked, positive(k, "k"))
        self._report_short(best, len(asked), k)
        named = best.with_columns(
            text=pl.Series(asked, dtype=pl.String).gather(best["user_row"]),
            item_id=state.catalogue.ids_of(best["item_row"].to_numpy()),
        )
        return to_caller(named.select("text", "item_id", "rank", "score"), self._implementation)

    def save(self, folder: str | Path) -> None:
        """Write a sealed folder: every file with its length and sha256 in `MANIFEST.json`, nothing half-written.

        Raises:
            NotFitted: before `fit`.
            PublishRefused: the folder exists and is neither empty nor an older save.
        """
        state = self._state
        write_bundle(Path(folder), lambda staging: write_fitted(state, self.config, staging))

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Self:
        """Read what `save` wrote, after checking every file. Frames come out as polars.

        Raises:
            BundleNotFound, BundleCorrupt, BundleIncompatible: there is none, it is damaged, or of another format.
            DeviceUnavailable: the device is not there.
        """
        resolved = resolve_device(device)
        open_bundle(Path(folder))
        state = read_state(Path(folder))
        recommender = cls(config_from_dict(state["config"]))
        recommender._fitted = read_fitted(Path(folder), state, recommender.config, resolved)
        return recommender

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of stage 1's sources, for `retrieve`."""
        return tuple(self._state.snapshot.retriever.sources)

    @property
    def _state(self) -> Fitted:
        if self._fitted is None:
            raise NotFitted(
                "this recommender has not learnt anything yet; call fit(interactions, items) or load(folder)"
            )
        return self._fitted

    def _lists(
        self,
        people: People,
        ids: pl.Series,
        k: int,
        filter_seen: FilterSeen,
        blocked: npt.NDArray[np.bool_],
        *,
        details: bool,
    ) -> Any:
        """Rank, then ids instead of rows, a word about short lists, and the caller's frame library."""
        hide = hide_seen(filter_seen, auto=self._state.hide_seen)
        lists = best_items(
            self._state, people, positive(k, "k"), self.config,
            blocked=blocked, hide_seen=hide, progress=self.config.progress and len(ids) > 1,
        )  # fmt: skip
        self._report_short(lists, len(ids), k)
        columns = ["user_id", "item_id", "rank", "score"]
        if details:
            columns += ["source", "stage1_score", "interest_score", "is_fallback"]
            lists = with_source(lists)
        return self._named(lists, ids, columns)

    def _report_short(self, lists: pl.DataFrame, n_asked: int, k: int) -> None:
        short = n_asked - lists.filter(pl.col("rank") == k).height
        if short:
            log.warning(
                "%d of %d lists have fewer than k=%d items (%d items are available before filters)",
                short,
                n_asked,
                k,
                int(self._state.catalogue.available.sum()),
            )

    def _named(self, lists: pl.DataFrame, ids: pl.Series, columns: list[str]) -> Any:
        named = lists.with_columns(
            user_id=ids.gather(lists["user_row"]), item_id=self._state.catalogue.ids_of(lists["item_row"].to_numpy())
        )
        return to_caller(named.select(columns), self._implementation)

    def _known_people(self, ids: pl.Series) -> People:
        return self._people(self._state.events, ids)

    def _people(self, events: pl.DataFrame, ids: pl.Series) -> People:
        """Users as of now: the fit's `as_of`, or just after their own last event where that is later.

        With windows of kind "last" it is always the latter, as it was at training.
        """
        ends = ids.to_frame("user_id").join(
            events.group_by("user_id").agg(end=pl.col("seconds").max() + 1.0),
            on="user_id",
            how="left",
            maintain_order="left",
        )["end"]
        as_of = self._state.as_of
        last = self._state.window_kind == "last"
        moments = ends.fill_null(as_of) if last else ends.fill_null(as_of).clip(lower_bound=as_of)
        numbers = user_numbers(self._state.users)
        if numbers is not None and numbers.schema["user_id"] != ids.dtype:  # strangers of another kind of id
            numbers = numbers.clear().cast({"user_id": ids.dtype})
        return gather_people(events, ids, moments, numbers)

    def _ending_now(self, events: pl.DataFrame) -> pl.DataFrame:
        """Histories whose times carry only order, moved so that each ends just before `as_of`."""
        shift = self._state.as_of - 1.0 - pl.col("seconds").max().over("user_id")
        return events.with_columns(seconds=pl.col("seconds") + shift)

    def _user_ids(self, users: Iterable[Any]) -> pl.Series:
        known = self._state.events.schema["user_id"]
        ids = id_series(users, "user_id", known)
        return ids.unique(maintain_order=True)

    def _report_unknown(self, ids: pl.Series, on_unknown: str) -> None:
        check_on_unknown(on_unknown)
        unknown = ids.filter(~ids.is_in(self._state.events["user_id"].unique().implode()))
        if unknown.is_empty() or on_unknown == "fallback":
            return
        if on_unknown == "raise":
            raise UnknownUsers(unknown.to_list())
        log.warning(
            "%d users have no history and get what is popular, first: %s", len(unknown), unknown.head(5).to_list()
        )

    def _blocked(self, allow_items: Iterable[Any] | None, deny_items: Iterable[Any] | None) -> npt.NDArray[np.bool_]:
        """Items that nobody may be shown, bool (n_items,)."""
        blocked = ~self._state.catalogue.available
        if allow_items is not None:
            allowed = np.zeros(len(blocked), dtype=np.bool_)
            allowed[self._item_rows(allow_items, "allow_items")] = True
            blocked = blocked | ~allowed
        if deny_items is not None:
            blocked[self._item_rows(deny_items, "deny_items")] = True
        return blocked

    def _item_rows(self, items: Iterable[Any], name: str) -> npt.NDArray[np.int64]:
        catalogue = self._state.catalogue
        ids = id_series(items, name, catalogue.items.schema["item_id"])
        rows = catalogue.rows_of(ids)
        if (rows < 0).any():
            unknown = ids.filter(pl.Series(rows < 0))
            raise InvalidData(
                table=name,
                column="item_id",
                rule="names items that are not in the catalogue",
                count=len(unknown),
                rows=unknown.head(5).to_list(),
                remedy="leave them out or fit with an items table that has them",
            )
        return rows
