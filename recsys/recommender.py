"""The door: `Recommender`.

Owns the public verbs, checks what comes in and gives back frames in the caller's library. What a fit does is
`recsys/pipeline.py`; what a candidate looks like is `recsys/candidates.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import narwhals as nw
import polars as pl

from ranking.rerank import top_k
from recsys import online, pipeline
from recsys.activity import ActivityModel
from recsys.arguments import FilterSeen, OnUnknown, asked_alone, hide_seen, positive
from recsys.bundle import open_bundle, write_bundle
from recsys.candidates import to_columns, to_frame
from recsys.config import RecommenderConfig, config_from_dict
from recsys.device import resolve_device
from recsys.errors import NotFitted
from recsys.events import to_events
from recsys.fitted import Fitted, read_fitted, read_state, write_fitted
from recsys.lists import named, named_lists, report_short, with_source
from recsys.nearest import nearest_to_items, nearest_to_texts
from recsys.pairs import Pairs, pair_probabilities, probabilities_of
from recsys.prediction import PairReports
from recsys.probability_report import ProbabilityReport
from recsys.reasons import check_language, explain_items
from recsys.requests import blocked_items, ending_now, item_rows, known_people, people_of, report_unknown, user_ids
from recsys.rules import Rules
from recsys.schema import Table, to_caller, validate, validate_histories


class Recommender:
    """A two-stage recommender: retrieval by vectors and behaviour, ranking by interest and behaviour.

    Example:
        >>> recommender = Recommender().fit(interactions, items)
        >>> recommender.recommend(["ada", "bob"], k=10)
    """

    def __init__(self, config: RecommenderConfig | None = None) -> None:
        self.config = config or RecommenderConfig()
        self._fitted: Fitted | None = None
        self._activity: dict[str, ActivityModel] = {}
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
            InvalidConfig: the device has no known name, the encoder or the teacher of its new tokens cannot be had, its
                vocabulary cannot be extended, or the index cannot be built.
            DeviceUnavailable: the configured device is not there.
        """
        device = resolve_device(self.config.device)
        tables = validate(interactions, items, users, unknown_items=self.config.unknown_items, now=datetime.now(UTC))
        self._fitted, self._activity = pipeline.fit(tables, self.config, device), {}
        self._implementation = tables.implementation
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mapped, dropped and decided at fit, as sentences."""
        return self._state.notes

    @property
    def users(self) -> pl.Series:
        """Ids of all users with history, in order."""
        return self._state.timelines.user_ids.alias("user_id")

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
        rules: Rules | None = None,
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
            rules: diversity, caps, boosts, pinned places, filters by attribute, freshness and calibration.
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
            InvalidConfig: `k` below 1, another word than those above, or rules that the items cannot follow.
            UnknownUsers: with `on_unknown="raise"`.
        """
        state = self._state
        ids = user_ids(state, users)
        report_unknown(state, ids, on_unknown)
        blocked = blocked_items(state.catalogue, allow_items, deny_items)
        lists = named_lists(
            state, known_people(state, ids), ids, k, self.config,
            filter_seen=filter_seen, blocked=blocked, rules=rules, details=details,
        )  # fmt: skip
        return to_caller(lists, self._implementation)

    def recommend_for(
        self,
        histories: Table | Mapping[Any, Sequence[Any]],
        k: int = 10,
        *,
        filter_seen: FilterSeen = "auto",
        allow_items: Iterable[Any] | None = None,
        deny_items: Iterable[Any] | None = None,
        rules: Rules | None = None,
        details: bool = False,
    ) -> Any:
        """Lists for people who need not have been there at fit, from what they took; nothing is retrained.

        Args:
            histories: a mapping from any user id to item ids, oldest first, or an interactions table whose `timestamp`
                may be missing.
            k: see `recommend`, as are the other arguments.

        Returns:
            As `recommend`, users in order of their ids. Users of whom no item is known get what is popular.

        Raises:
            NotFitted: before `fit`.
            InvalidData: the histories break a rule or there are none, or an unknown item in a list or in the rules.
            InvalidConfig: `k` below 1, another word than those above, or rules that the items cannot follow.
        """
        state = self._state
        given = validate_histories(histories, state.catalogue.items)
        events, ids = to_events(given.interactions, state.catalogue, state.towers.event_kinds), given.users
        people = people_of(state, events if given.timed else ending_now(state, events), ids)
        blocked = blocked_items(state.catalogue, allow_items, deny_items)
        lists = named_lists(
            state, people, ids, k, self.config,
            filter_seen=filter_seen, blocked=blocked, rules=rules, details=details,
        )  # fmt: skip
        return to_caller(lists, self._implementation)

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

        Raises:
            NotFitted: before `fit`.
            InvalidData: ids of another type than at fit, or an unknown item in a list.
            InvalidConfig: `n_candidates` below 1, another word than those above, a source that is not there, or none.
        """
        state, ids = self._state, user_ids(self._state, users)
        retriever, most = state.snapshot.retriever, min(positive(n_candidates, "n_candidates"), len(state.catalogue))
        found = (retriever if sources is None else asked_alone(retriever, sources)).retrieve(
            known_people(state, ids).histories,
            blocked=blocked_items(state.catalogue, allow_items, deny_items),
            hide_seen=hide_seen(filter_seen, auto=state.hide_seen),
            n_candidates=most,
            progress=self.config.progress and len(ids) > 1,
        )
        frame = to_frame(to_columns(found)).with_columns(score=pl.col("stage1_score"))
        ranked = with_source(top_k(frame, most))
        report_short(state, ranked, len(ids), n_candidates)
        columns = ["user_id", "item_id", "rank", "score", "source"]
        return to_caller(named(state, ranked, ids, columns), self._implementation)

    def explain(
        self,
        user: Any,
        items: Iterable[Any] | None = None,
        k: int = 10,
        *,
        filter_seen: FilterSeen = "auto",
        language: str = "en",
    ) -> Any:
        """Why these items are for this user, or are not.

        Args:
            user: one user id.
            items: item ids, repetitions count once; by default the user's list.
            k: length of that list.
            filter_seen: see `recommend`.
            language: of the sentences, "en" or "zh".

        Returns:
            One row an item: `item_id`; `rank` among the user's candidates, null for others; `because_text`, the nearest
            items of his history by text, as structs of `item_id` and `similarity` (cosine); `because_behaviour`, those
            after which it is most often taken, with `weight`; `contributions`, the five that move the ranker's score
            most, with `feature`, `value` and `contribution` (null for items that are no candidates, empty where no
            ranker ordered the list); and a `sentence`.

        Raises:
            InvalidData: an id of another type than at fit, or an unknown item.
            InvalidConfig: `k` below 1, or a language without sentences.
        """
        state = self._state
        check_language(language)
        asked = None if items is None else pl.Series(item_rows(state.catalogue, items, "items"))
        people = known_people(state, user_ids(state, [user]))
        reasons = explain_items(
            state, people, None if asked is None else asked.unique(maintain_order=True).to_numpy(),
            min(positive(k, "k"), len(state.catalogue)), self.config, language=language,
            hide_seen=hide_seen(filter_seen, auto=state.hide_seen),
        )  # fmt: skip
        return to_caller(reasons, self._implementation)

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
        return to_caller(nearest_to_items(self._state, items, k), self._implementation)

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
        return to_caller(nearest_to_texts(self._state, texts, k), self._implementation)

    def predict_proba(self, pairs: Pairs, event: str | None = None) -> Any:
        """How probable it is that a user takes an item within as long a time as window C (see `probability_reports`).

        Args:
            pairs: a table with `user_id` and `item_id`, or tuples of both.
            event: a kind of event, such as "purchase"; None for any.

        Returns:
            `user_id`, `item_id`, `probability`, in the order of the pairs.

        Raises:
            NotFitted: before `fit`, or fitted with `probabilities = false`.
            InvalidConfig: the kind of event is unknown or was too rare (see `notes`).
            InvalidData: malformed pairs, ids of another type than at fit, or an unknown item.
            UnknownUsers: a user without history.
        """
        return to_caller(pair_probabilities(self._state, pairs, event, self.config), self._implementation)

    @property
    def probability_reports(self) -> Mapping[str, PairReports]:
        """How good `predict_proba` was on users it had not seen, by kind of event; "any" is all of them."""
        return probabilities_of(self._state).reports

    def predict_activity(self, users: Iterable[Any], horizon: str = "7d") -> Any:
        """How probable it is that a user does anything within a horizon after the fit's end; churn is 1 minus that.

        Args:
            users: user ids; repetitions count once.
            horizon: hours, days or weeks: "12h", "7d", "2w". What it needs is learnt when it is first asked for.

        Returns:
            `user_id`, `probability`, in the order of `users`.

        Raises:
            InvalidConfig: the horizon is malformed, or too long or too short for the interactions.
            UnknownUsers: a user without history.
        """
        ids = user_ids(self._state, users)
        report_unknown(self._state, ids, "raise")
        found = self._activity_model(horizon).predict(self._state.events, ids, self._state.as_of)
        return to_caller(found, self._implementation)

    def activity_report(self, horizon: str = "7d") -> ProbabilityReport:
        """How good `predict_activity` was for the last horizon before the fit's end; raises as that does."""
        return self._activity_model(horizon).report

    def upsert_items(self, items: Table) -> None:
        """Add items or replace known ones; they can be recommended at once. See `recsys.online` for these four."""
        self._fitted = online.upsert_items(self._state, items, self.config)

    def delete_items(self, ids: Iterable[Any]) -> None:
        """Never show these items again, until they are upserted."""
        self._fitted = online.delete_items(self._state, ids)

    def delete_users(self, ids: Iterable[Any]) -> online.DeletionReceipt:
        """Remove people and everything they did; the receipt says how many rows that were."""
        self._fitted, receipt = online.delete_users(self._state, ids, self.config)
        self._activity = {}
        return receipt

    def update_interactions(self, interactions: Table, *, now: datetime | None = None) -> None:
        """Add newer interactions; known rows change nothing. One after `now`, by default the clock's, is refused."""
        self._fitted = online.update_interactions(self._state, interactions, self.config, now or datetime.now(UTC))
        self._activity = {}

    def save(self, folder: str | Path) -> None:
        """Write a sealed folder: every file with its length and sha256 in `MANIFEST.json`, nothing half-written.

        Raises:
            NotFitted: before `fit`.
            PublishRefused: the folder exists and is neither empty nor an older save.
        """
        state = online.settled(self._state, self.config)
        write_bundle(Path(folder), lambda staging: write_fitted(state, self.config, staging))

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Self:
        """Read what `save` wrote, after checking every file. Frames come out as polars.

        Raises:
            BundleNotFound, BundleCorrupt, BundleIncompatible: there is none, it is damaged, or of another format.
            DeviceUnavailable: the device is not there.
        """
        open_bundle(path := Path(folder))
        config = config_from_dict((state := read_state(path))["config"])
        fitted = read_fitted(path, state, config, resolve_device(device))
        fitted.snapshot.ready()
        return cls.of(fitted, config)

    @classmethod
    def of(cls, fitted: Fitted, config: RecommenderConfig) -> Self:
        """A recommender that has learnt this already: what `recsys.pipeline` left behind. Frames come out as polars."""
        recommender = cls(config)
        recommender._fitted = fitted
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

    def _activity_model(self, horizon: str) -> ActivityModel:
        if horizon not in self._activity:
            state, seed = self._state, self.config.seed
            model = ActivityModel.learn(state.events, state.as_of, horizon, self.config.heads, seed=seed)
            self._activity[horizon] = model
        return self._activity[horizon]
