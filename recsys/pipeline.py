"""`fit` as a straight line of named steps.

Owns the order of the steps and who may see which window: towers learn from A, the interest model from B, the ranker
from C. At the end histories, counts, features, sources and the two towers move on to the newest data, while encoder,
interest model and ranker stay: at serving, as at training, the ranker sees scores of towers that learnt from what lies
before the items which they score.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from indexing.encoder import resolve_encoder
from ranking.features import feature_names
from ranking.interest import InterestModel
from ranking.ranker import Ranker
from ranking.rerank import top_k
from ranking.training_set import label_candidates
from recsys import metrics
from recsys.catalogue import Catalogue, user_numbers
from recsys.config import RecommenderConfig
from recsys.fitted import Fitted
from recsys.notes import Notes
from recsys.schema import Tables
from recsys.snapshot import (
    People,
    Snapshot,
    candidate_frame,
    gather_people,
    history_texts,
    take_snapshot,
    to_frame,
)
from recsys.splits import Windows, end_of, make_windows, moments
from recsys.towers import Towers, learn_towers, load_encoder, prepare_encoder, renew_towers

MIN_RANKER_USERS = 20
MIN_INTEREST_USERS = 8
MIN_SOURCE_WEIGHT = 0.05
WEIGHED_DEPTH = 100
VALIDATION_SHARE = 0.15
NEGATIVE_DEPTH = 100  # negatives of the interest model come from the best candidates, where it will be asked


@dataclass(frozen=True, slots=True)
class LabelWindow:
    """What stage 2 may learn from one window: people and items as of its start, and what was taken in it.

    Attributes:
        people: users with history before the window and labels in it.
        labels: `user_row`, `item_row` taken in the window.
        snapshot: sources and statistics as of the window's start.
    """

    people: People
    labels: pl.DataFrame
    snapshot: Snapshot


def fit(tables: Tables, config: RecommenderConfig, device: str) -> Fitted:
    """Train both stages.

    Args:
        tables: validated.
        config: everything else.
        device: resolved, "cpu" or "cuda...".
    """
    notes = Notes(tables.notes)
    catalogue = Catalogue.of(tables.items, ignore_columns=config.ignore_columns)
    numbers = user_numbers(tables.users)
    windows = make_windows(tables.interactions, config.windows)
    notes.add(f"windows: {windows.kind}. {windows.reason}")
    hide_seen = decide_seen(tables.interactions, config, notes)
    encoder = load_encoder(config, device)
    readable = prepare_encoder(encoder, catalogue, config, notes)
    kinds = tuple(windows.history_b["event"].unique().sort())
    before_b = to_events(windows.history_b, catalogue, kinds)
    towers = learn_towers(encoder, before_b, kinds, catalogue, config, device, notes, tune=readable)

    b = open_window(windows, "b", {}, towers, catalogue, numbers, config, hide_seen=hide_seen)
    candidates = retrieve(b, catalogue, config, hide_seen=hide_seen)
    weights = weigh_sources(candidates, b.labels)
    interest = train_interest(b, candidates, catalogue, config, device, notes) if readable else None

    c = open_window(windows, "c", weights, towers, catalogue, numbers, config, hide_seen=hide_seen)
    ranker = train_ranker(c, interest, catalogue, config, notes, hide_seen=hide_seen)

    events = to_events(tables.interactions, catalogue, kinds)
    if config.renew_towers:
        towers = renew_towers(towers, events, catalogue, config, device)
    as_of = windows.end.timestamp()
    now = take_snapshot(events, as_of, towers, catalogue, config, repeats=not hide_seen, weights=weights)
    return Fitted(
        catalogue=catalogue,
        events=events,
        users=tables.users,
        towers=towers,
        interest=interest,
        ranker=ranker,
        snapshot=now,
        window_kind=windows.kind,
        as_of=as_of,
        hide_seen=hide_seen,
        weights=weights,
        notes=tuple(notes.sentences),
    )


def to_events(interactions: pl.DataFrame, catalogue: Catalogue, kinds: tuple[str, ...]) -> pl.DataFrame:
    """`user_id`, `item_row` (Int32), `seconds` (Float64, Unix time), `event_row` (Int16), `weight` (Float32).

    In the order of the interactions. A kind of event that is not among `kinds` counts as the first.
    """
    codes = {kind: row for row, kind in enumerate(kinds)}
    return interactions.select(
        "user_id",
        item_row=pl.Series(catalogue.rows_of(interactions["item_id"]), dtype=pl.Int32),
        seconds=pl.col("timestamp").dt.epoch("us") / 1e6,
        event_row=pl.col("event").replace_strict(codes, default=0, return_dtype=pl.Int16),
        weight=pl.col("weight").cast(pl.Float32),
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
) -> LabelWindow:
    """Everything as of the start of window B or C, and its labels. Nothing in the window can change the former."""
    history, labels, start = (
        (windows.history_b, windows.labels_b, windows.start_b)
        if name == "b"
        else (windows.history_c, windows.labels_c, windows.start_c)
    )
    events = to_events(history, catalogue, towers.event_kinds)
    moment = (start or end_of(history)).timestamp()
    snapshot = take_snapshot(events, moment, towers, catalogue, config, repeats=not hide_seen, weights=weights)
    known = moments(history.join(labels, on="user_id", how="semi"), windows.kind, start)
    if known.height > config.max_label_users:
        known = known.sample(config.max_label_users, seed=config.seed).sort("user_id")
    seconds = known["moment"].dt.epoch("us") / 1e6
    people = gather_people(events, known["user_id"], seconds, numbers)
    rows = known.select("user_id").with_row_index("user_row").cast({"user_row": pl.Int32})
    taken = (
        to_events(labels, catalogue, towers.event_kinds)
        .join(rows, on="user_id")
        .select("user_row", "item_row")
        .unique()
    )
    return LabelWindow(people, taken.sort("user_row", "item_row"), snapshot)


def retrieve(window: LabelWindow, catalogue: Catalogue, config: RecommenderConfig, *, hide_seen: bool) -> pl.DataFrame:
    """Candidates of the window's users, without features."""
    nothing = np.zeros(len(catalogue), dtype=np.bool_)
    found = window.snapshot.retriever.retrieve(
        window.people.histories, blocked=nothing, hide_seen=hide_seen, progress=config.progress
    )
    return to_frame(found)


def weigh_sources(candidates: pl.DataFrame, labels: pl.DataFrame) -> dict[str, float]:
    """A source's worth in the blend: how many of its first `WEIGHED_DEPTH` were taken, relative to the best source.

    The depth is that of the lists which the blend decides about. What a source has among its first ten says little
    about that: one with a few sure hits on top and nothing below would bury one that finds much more a little later.
    """
    taken = candidates.join(labels, on=["user_row", "item_row"], how="semi")
    ranks = [name for name in candidates.columns if name.endswith("_rank")]
    hits = {name.removesuffix("_rank"): taken.filter(pl.col(name) <= WEIGHED_DEPTH).height for name in ranks}
    best = max(hits.values(), default=0)
    return {name: max(n / best, MIN_SOURCE_WEIGHT) if best else 1.0 for name, n in hits.items()}


def train_interest(
    window: LabelWindow,
    candidates: pl.DataFrame,
    catalogue: Catalogue,
    config: RecommenderConfig,
    device: str,
    notes: Notes,
) -> InterestModel | None:
    """Stage 2's cross-encoder on window B: one taken item of each user against retrieved ones that he did not take."""
    if config.n_interest == 0:
        notes.add("interest model: switched off (n_interest = 0).")
        return None
    histories, groups = interest_groups(window, candidates, catalogue, config)
    if len(groups) < MIN_INTEREST_USERS:
        notes.add(
            f"interest model: left out, {len(groups)} users to learn from and {MIN_INTEREST_USERS} are needed.",
            level=logging.WARNING,
        )
        return None
    checkpoint = resolve_encoder(config.encoder.model)
    model = InterestModel(config.interest, checkpoint=checkpoint, device=device, seed=config.seed)
    model.fit(histories, groups, progress=config.progress)
    notes.add(f"interest model: fine-tuned on the lists of {min(len(groups), config.interest.max_groups)} users.")
    return model


def interest_groups(
    window: LabelWindow, candidates: pl.DataFrame, catalogue: Catalogue, config: RecommenderConfig
) -> tuple[list[str], list[list[str]]]:
    """History texts, and for each the taken item's text followed by texts of items that were not taken."""
    rng = np.random.default_rng(config.seed)
    others = candidates.join(window.labels, on=["user_row", "item_row"], how="anti")
    others = others.filter(pl.int_range(pl.len()).over("user_row") < NEGATIVE_DEPTH)
    negatives = dict(others.group_by("user_row").agg("item_row").iter_rows())
    taken = dict(window.labels.group_by("user_row", maintain_order=True).agg("item_row").iter_rows())
    texts = history_texts(window.people, catalogue)
    histories, groups = [], []
    for user, rows in taken.items():
        if not (texts[user] and negatives.get(user)):
            continue
        n_others = min(config.interest.group_size - 1, len(negatives[user]))
        chosen = rng.choice(negatives[user], n_others, replace=False)
        group = [catalogue.short_text_of(row) for row in (rng.choice(rows), *chosen)]
        if set(group[1:]) - {group[0]}:  # items with the text of the taken one teach nothing
            histories.append(texts[user])
            groups.append(group)
    return histories, groups


def train_ranker(
    window: LabelWindow,
    interest: InterestModel | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
    notes: Notes,
    *,
    hide_seen: bool,
) -> Ranker | None:
    """Stage 2's ranker on window C; None where there is too little to learn from or stage 1 alone ranks better."""
    nothing = np.zeros(len(catalogue), dtype=np.bool_)
    frame = candidate_frame(
        window.people, window.snapshot, interest, catalogue, config,
        blocked=nothing, hide_seen=hide_seen, progress=config.progress,
    )  # fmt: skip
    training = label_candidates(frame, window.labels, seed=config.seed)
    notes.add(
        f"ranker: {training.n_users} users with a taken candidate, {training.rows.height} rows; "
        f"{training.n_dropped} users whose taken items were not among the candidates teach nothing."
    )
    if training.n_users < MIN_RANKER_USERS:
        notes.add(
            f"ranker: left out, {MIN_RANKER_USERS} users are needed; lists follow the blend of stage 1.",
            level=logging.WARNING,
        )
        return None
    train, validation = split_users(training.rows, config.seed)
    names = feature_names(frame, exclude=("user_row", "item_row"))
    try:
        ranker = Ranker(config.ranker, seed=config.seed).fit(train, validation, names)
    except RuntimeError as error:
        notes.add(f"{error}; lists follow the blend of stage 1.", level=logging.WARNING)
        return None
    return ranker if beats_blend(ranker, validation, notes) else None


def split_users(rows: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training rows and rows of a random `VALIDATION_SHARE` of the users, for early stopping."""
    users = rows["user_row"].unique().sort().shuffle(seed)
    held_out = users.head(max(1, round(VALIDATION_SHARE * len(users)))).implode()
    chosen = pl.col("user_row").is_in(held_out)
    return rows.filter(~chosen), rows.filter(chosen)


def beats_blend(ranker: Ranker, validation: pl.DataFrame, notes: Notes) -> bool:
    """Compare ndcg@10 of the ranker and of stage 1's blend on the validation users."""
    scored = validation.with_columns(ranker=pl.Series(ranker.predict(validation)))
    by_ranker, by_blend = (mean_ndcg(scored.with_columns(score=pl.col(name))) for name in ("ranker", "stage1_score"))
    wins = by_ranker > by_blend
    notes.add(
        f"ranker: ndcg@10 on {validation['user_row'].n_unique()} held-out users {by_ranker:.4f}, blend of stage 1 "
        f"{by_blend:.4f}; lists follow the {'ranker' if wins else 'blend'}.",
        level=logging.INFO if wins else logging.WARNING,
    )
    return wins


def mean_ndcg(scored: pl.DataFrame, k: int = 10) -> float:
    """Mean ndcg@k of labelled, scored candidate rows."""
    named = {"user_row": "user_id", "item_row": "item_id"}
    truth = scored.filter(pl.col("label") > 0).rename(named)
    hits = metrics.hit_matrix(top_k(scored, k).rename(named), truth, k)
    return float(metrics.ndcg(hits, k).mean())
