"""`fit` as a straight line of named steps.

Owns the order of the steps and who may see which window: towers learn from A, stage 2 from B and C (who of them is
`recsys/second_stage.py`'s business). At the end histories, counts, features, sources and the two towers move on to the
newest data, while encoder, interest model and ranker stay: at serving, as at training, the ranker sees scores of towers
that learnt from what lies before the items which they score.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
import scipy.sparse as sp

from indexing.encoder import BiEncoder
from recsys.candidates import candidate_columns, to_frame
from recsys.catalogue import MAX_GROUPS, Catalogue, crowded_columns, user_numbers, user_values
from recsys.checkpoints import with_own_checkpoints
from recsys.config import RecommenderConfig
from recsys.errors import InvalidConfig
from recsys.events import graded, to_events
from recsys.fitted import Fitted
from recsys.notes import Notes
from recsys.prediction import Probabilities, learn_probabilities
from recsys.requests import known_people
from recsys.schema import Tables
from recsys.second_stage import LabelWindow, SecondStage, report_drift, retrieve, train_second_stage
from recsys.snapshot import gather_people, take_snapshot
from recsys.source_lesson import decide_ease, decide_news, weigh_sources
from recsys.splits import end_of
from recsys.towers import Towers, covisitation_of, learn_towers, load_encoder, prepare_encoder, renew_towers
from recsys.windows import Windows, make_windows, moments, window_between

WEIGHED_USERS = 2000
DRIFT_USERS = 100
ONLY_LATER = (
    "ease",
    "retriever",
    "interest",
    "features",
    "ranker",
    "heads",
    "n_interest",
    "keep_interest",
    "max_label_users",
    "max_ranker_rows",
    "novelty_limit",
    "event_grades",
    "probabilities",
)
"""Settings that neither the first stage nor its renewal reads: fits that differ in these alone may share both."""


@dataclass(frozen=True, slots=True)
class FirstStage:
    """Stage 1 as learnt from window A, and what every later step starts from.

    Attributes:
        tables: validated.
        catalogue: the items.
        numbers: numeric columns of the users, or None.
        windows: A, B and C.
        hide_seen: what `filter_seen="auto"` means for these data.
        readable: whether the encoder can read the catalogue.
        towers: encoder, item tower, history encoder and index.
        covisited: co-visitation of the events before window B, float32 CSR (n_items, n_items).
        device: resolved.
        notes: what was decided.
    """

    tables: Tables
    catalogue: Catalogue
    numbers: pl.DataFrame | None
    windows: Windows
    hide_seen: bool
    readable: bool
    towers: Towers
    covisited: sp.csr_matrix
    device: str
    notes: tuple[str, ...]

    def events(self, interactions: pl.DataFrame) -> pl.DataFrame:
        """Interactions by row numbers; see `to_events`."""
        return to_events(interactions, self.catalogue, self.towers.event_kinds)


@dataclass(frozen=True, slots=True)
class Learnt:
    """What the label windows taught.

    Attributes:
        second: interest model and rankers.
        probabilities: heads of `predict_proba`, or None.
        news: whether items that nobody took yet are a source.
        ease: whether EASE is.
        weights: of the sources in the blend.
        notes: what was decided.
    """

    second: SecondStage
    probabilities: Probabilities | None
    news: bool
    ease: bool
    weights: Mapping[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Renewed:
    """Stage 1 as of the end.

    Attributes:
        events: all of them, see `to_events`.
        towers: trained anew on them, or as they were.
        covisited: co-visitation of all events, None where it was not needed.
        notes: what was decided.
    """

    events: pl.DataFrame
    towers: Towers
    covisited: sp.csr_matrix | None
    notes: tuple[str, ...]


def fit(tables: Tables, config: RecommenderConfig, device: str) -> Fitted:
    """Train both stages.

    Args:
        tables: validated.
        config: everything else.
        device: resolved, "cpu" or "cuda...".
    """
    first = learn_first_stage(tables, config, device)
    learnt = learn_second_stage(first, config)
    renewed = renew_first_stage(first, config)
    return as_of_the_end(first, learnt, renewed, config)


def first_stage_settings(config: RecommenderConfig) -> RecommenderConfig:
    """What of the configuration the first stage and its renewal depend on: the same with everything else by default."""
    usual = RecommenderConfig()
    return replace(config, **{name: getattr(usual, name) for name in ONLY_LATER})


def learn_first_stage(tables: Tables, config: RecommenderConfig, device: str) -> FirstStage:
    """Catalogue, windows, and the towers that learn from window A.

    Args:
        tables: validated.
        config: everything else.
        device: resolved.

    Raises:
        InvalidConfig: an encoder that cannot be had, or settings that it does not allow.
    """
    notes = Notes(tables.notes)
    catalogue = Catalogue.of(tables.items, ignore_columns=config.ignore_columns)
    absent = [name for name in config.ignore_columns if name not in tables.items.columns]
    if absent:
        notes.add(f"ignore_columns: the items have no column {', '.join(absent)}.", level=logging.WARNING)
    for name, table in (("items", tables.items), ("users", tables.users)):
        if table is not None and (crowded := crowded_columns(table, config.ignore_columns)):
            notes.add(f"{name}: no features of {', '.join(crowded)}, text of more than {MAX_GROUPS} different values.")
    windows = make_windows(tables.interactions, config.windows)
    notes.add(f"windows: {windows.kind}. {windows.reason}")
    hide_seen = decide_seen(tables.interactions, config, notes)
    encoder = load_encoder(config, device)
    check_interest(encoder, config)
    readable = prepare_encoder(encoder, catalogue, config, notes)
    kinds = tuple(tables.interactions["event"].unique().sort())  # no window may meet a kind without a number
    before_b = to_events(windows.history_b, catalogue, kinds)
    covisited = covisitation_of(before_b, catalogue, config)
    towers = learn_towers(
        encoder, before_b, kinds, catalogue, with_own_checkpoints(config, tables, "fit"), device, notes,
        tune=readable, covisited=covisited,
    )  # fmt: skip
    return FirstStage(
        tables=tables,
        catalogue=catalogue,
        numbers=user_numbers(tables.users, user_values(tables.users)),
        windows=windows,
        hide_seen=hide_seen,
        readable=readable,
        towers=towers,
        covisited=covisited,
        device=device,
        notes=tuple(notes.sentences),
    )


def check_interest(encoder: BiEncoder, config: RecommenderConfig) -> None:
    """Refuse, before anything is trained, pairs that are longer than the encoder's layers can read."""
    body: Any = encoder.model[0]
    limit, asked = body.auto_model.config.max_position_embeddings, config.interest.max_tokens
    if config.n_interest and asked > limit:
        raise InvalidConfig(f"interest.max_tokens={asked} is over the {limit} tokens that {config.encoder.model} reads")


def learn_second_stage(first: FirstStage, config: RecommenderConfig) -> Learnt:
    """Worth of the sources, interest model, rankers and heads, from windows B and C.

    Args:
        first: learnt with the same `first_stage_settings`; it stays as it is.
        config: everything else.
    """
    check_interest(first.towers.encoder, config)
    notes = Notes(())
    report_grades(first.tables.interactions, config.event_grades, notes)
    towers, catalogue, numbers, hide_seen = first.towers, first.catalogue, first.numbers, first.hide_seen
    rest = (towers, catalogue, numbers, config)
    news, ease = decide_news(first.windows, config, notes), decide_ease(first.tables.interactions, config, notes)
    decided: dict[str, Any] = {"hide_seen": hide_seen, "news": news, "ease": ease}
    b = open_window(first.windows, "b", {}, *rest, **decided, covisited=first.covisited)
    some = b.head(WEIGHED_USERS)
    wanted = some.labels
    if hide_seen:
        wanted = wanted.join(some.people.history, on=["user_row", "item_row"], how="anti")
    weights = weigh_sources(retrieve(some, config, hide_seen=hide_seen), wanted, some.snapshot.popularity)
    b = b.weighted(weights)
    c = open_window(first.windows, "c", weights, *rest, **decided)
    halfway = window_between(first.windows)
    between = None
    if halfway is not None:
        between = open_window(halfway, "b", weights, *rest, **decided)
    encoder = towers.encoder if first.readable else None
    second = train_second_stage(
        b, c, encoder, catalogue, config, first.device, notes, between=between, hide_seen=hide_seen
    )
    probabilities = None
    if config.probabilities:
        snapshots = (b.snapshot, c.snapshot)
        probabilities = learn_probabilities(
            first.windows, snapshots, first.events, numbers, catalogue, config, notes, hide_seen=hide_seen
        )
    return Learnt(second, probabilities, news, ease, weights, tuple(notes.sentences))


def renew_first_stage(first: FirstStage, config: RecommenderConfig) -> Renewed:
    """All events, and the two towers trained anew on them; `first` stays as it is."""
    notes = Notes(())
    towers, covisited, events = first.towers, None, first.events(first.tables.interactions)
    if config.renew_towers:
        covisited = covisitation_of(events, first.catalogue, config)
        own = with_own_checkpoints(config, first.tables, "renewal")
        towers = renew_towers(towers, events, covisited, first.catalogue, own, first.device, notes)
    return Renewed(events, towers, covisited, tuple(notes.sentences))


def as_of_the_end(first: FirstStage, learnt: Learnt, renewed: Renewed, config: RecommenderConfig) -> Fitted:
    """Sources and statistics as of the end, and whether the ranker sees there what it learnt from."""
    notes = Notes((*first.notes, *learnt.notes, *renewed.notes))
    catalogue, windows, hide_seen = first.catalogue, first.windows, first.hide_seen
    second, events, as_of = learnt.second, renewed.events, windows.end.timestamp()
    now = take_snapshot(
        events, as_of, renewed.towers, catalogue, config,
        repeats=not hide_seen, news=learnt.news, with_ease=learnt.ease, clock=windows.kind == "last",
        weights=learnt.weights, covisited=renewed.covisited,
    )  # fmt: skip
    fitted = Fitted(
        catalogue=catalogue,
        events=events,
        users=first.tables.users,
        user_values=user_values(first.tables.users),
        towers=renewed.towers,
        interest=second.interest,
        ranker=second.ranker,
        new_ranker=second.new_ranker,
        probabilities=learnt.probabilities,
        snapshot=now,
        window_kind=windows.kind,
        as_of=as_of,
        hide_seen=hide_seen,
        news=learnt.news,
        weights=learnt.weights,
        notes=(),
    )
    if second.ranker is not None:
        report_drift(second.recent, rows_of_now(fitted, config), config.seed, notes)
    return replace(fitted, notes=tuple(notes.sentences))


def rows_of_now(fitted: Fitted, config: RecommenderConfig) -> pl.DataFrame:
    """Candidate rows of some users as they would be served."""
    users = fitted.timelines.user_ids
    people = known_people(fitted, users.sample(min(DRIFT_USERS, len(users)), seed=config.seed))
    columns = candidate_columns(
        people, fitted.snapshot, fitted.interest, fitted.catalogue, config,
        blocked=np.zeros(len(fitted.catalogue), dtype=np.bool_), hide_seen=fitted.hide_seen,
    )  # fmt: skip
    return to_frame(columns)


def report_grades(interactions: pl.DataFrame, event_grades: tuple[str, ...], notes: Notes) -> None:
    """Warn of graded kinds of events that never happen."""
    there = interactions["event"].unique().sort().to_list()
    strange = [kind for kind in event_grades if kind not in there]
    if strange:
        known = ", ".join(map(repr, there))
        notes.add(
            f"event_grades: no interaction is {', '.join(map(repr, strange))}; there are {known}.",
            level=logging.WARNING,
        )


def decide_seen(interactions: pl.DataFrame, config: RecommenderConfig, notes: Notes) -> bool:
    """What `filter_seen="auto"` means for these data: hide seen items unless repeats are common."""
    pairs = interactions.select("user_id", "item_id").n_unique()
    share = 1.0 - pairs / interactions.height
    hide = share < config.repeat_limit
    word = "hidden" if hide else "shown"
    notes.add(
        f'filter_seen="auto": {share:.0%} of the interactions are repeats (limit {config.repeat_limit:.0%}), '
        f"so items that a user has already taken are {word}."
    )
    return hide


def open_window(
    windows: Windows,
    name: Literal["b", "c"],
    weights: Mapping[str, float],
    towers: Towers,
    catalogue: Catalogue,
    numbers: pl.DataFrame | None,
    config: RecommenderConfig,
    *,
    hide_seen: bool,
    news: bool,
    ease: bool,
    covisited: sp.csr_matrix | None = None,
) -> LabelWindow:
    """Everything as of the start of window B or C, and its labels. Nothing in the window can change the former.

    `covisited` is the co-visitation of the window's history, where it is there already.
    """
    history, labels, start = (
        (windows.history_b, windows.labels_b, windows.start_b)
        if name == "b"
        else (windows.history_c, windows.labels_c, windows.start_c)
    )
    events = to_events(history, catalogue, towers.event_kinds)
    moment = (start or end_of(history)).timestamp()
    snapshot = take_snapshot(
        events, moment, towers, catalogue, config,
        repeats=not hide_seen, news=news, with_ease=ease, clock=windows.kind == "last", weights=weights,
        covisited=covisited,
    )  # fmt: skip
    known = moments(history.join(labels, on="user_id", how="semi"), windows.kind, start).sort("user_id")
    known = known.sample(min(known.height, config.max_label_users), shuffle=True, seed=config.seed)
    people = gather_people(events, known["user_id"], known["moment"].dt.epoch("us") / 1e6, numbers)
    return LabelWindow(people, graded(labels, known["user_id"], catalogue, config.event_grades), snapshot)
