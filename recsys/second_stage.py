"""Training of stage 2: the interest model on window B, the ranker on both label windows.

Owns who may teach what. The interest model learns from some users of window B, the ranker from the others and from
everybody in window C, so that no interest score which the ranker reads was given to a choice that it was learnt from;
the window between the two teaches the ranker only where there is no such score.
Opening the windows is `recsys/pipeline.py`, teaching the ranker `recsys/ranker_lesson.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm import tqdm

from indexing.encoder import BiEncoder
from ranking.drift import MAX_AUC, MAX_SHIFT, measure_drift, sample_users
from ranking.features import feature_names
from ranking.interest import InterestModel
from ranking.ranker import Ranker
from ranking.training_set import NOT_FEATURES, TrainingSet, label_candidates
from recsys.candidates import describe, history_texts, of_frame, to_columns, to_frame
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.notes import Notes
from recsys.ranker_lesson import MIN_RANKER_USERS, earns_its_place, train_ranker, without_interest, without_users
from recsys.snapshot import People, Snapshot
from recsys.towers import INTEREST_SHARE, budget

MIN_INTEREST_USERS = 8
PUPIL_SHARE = 1 / 3  # of window B's users, at most, teach the interest model: the ranker needs the others
USERS_PER_BLOCK = 2048
DRIFT_ROWS = 20_000
NOBODY = np.zeros(0, dtype=np.int32)
FIRST_LOOK_ROWS = 150_000  # of each window, 500 users: scoring everybody's candidates is a large part of a fit on a CPU
NEGATIVE_DEPTH = 100  # negatives of the interest model come from the best candidates, where it will be asked


@dataclass(frozen=True, slots=True)
class LabelWindow:
    """What stage 2 may learn from one window: people and items as of its start, and what was taken in it.

    Attributes:
        people: users with history before the window and labels in it.
        labels: `user_row`, `item_row` and `grade` of what was taken in the window.
        snapshot: sources and statistics as of the window's start.
    """

    people: People
    labels: pl.DataFrame
    snapshot: Snapshot

    def head(self, n: int) -> LabelWindow:
        """The first users only; their order is random."""
        return LabelWindow(self.people.slice(0, n), self.labels.filter(pl.col("user_row") < n), self.snapshot)

    def weighted(self, weights: Mapping[str, float]) -> LabelWindow:
        """The same with other worths of the sources in the blend."""
        return replace(self, snapshot=self.snapshot.weighted(weights))


@dataclass(frozen=True, slots=True)
class SecondStage:
    """What stage 2 learnt.

    Attributes:
        interest: the cross-encoder, or None.
        ranker: for lists as they are by default, or None.
        new_ranker: for lists without seen items where they are shown by default, or None.
        recent: labelled rows of some users of window C.
    """

    interest: InterestModel | None
    ranker: Ranker | None
    new_ranker: Ranker | None
    recent: pl.DataFrame


def train_second_stage(
    b: LabelWindow,
    c: LabelWindow,
    encoder: BiEncoder | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
    device: str,
    notes: Notes,
    *,
    between: LabelWindow | None = None,
    hide_seen: bool,
) -> SecondStage:
    """The interest model, the ranker and, where seen items are shown, a second ranker for lists of new items only.

    Args:
        b: learns the interest model and, with the users that this left, the ranker.
        c: stops the ranker's training early and decides whether it is used.
        encoder: start of the interest model; None where it cannot read the catalogue.
        catalogue: the items.
        config: everything else.
        device: resolved.
        notes: gets what was done.
        between: teaches the ranker once nothing is left to be measured, where no interest score is used: some of its
            labels taught that.
        hide_seen: whether items that a user has taken are hidden by default.
    """
    found_b, found_c = (retrieve(window, config, hide_seen=hide_seen) for window in (b, c))
    interest, pupils = train_interest(b, found_b, encoder, catalogue, config, device, notes)
    many = min(found_b.height, found_c.height, config.max_ranker_rows) > 2 * FIRST_LOOK_ROWS
    if interest is not None and many and config.keep_interest == "earned":
        few = replace(config, max_ranker_rows=FIRST_LOOK_ROWS)
        some_b, some_c = (training_rows(*seen, interest, catalogue, few) for seen in ((b, found_b), (c, found_c)))
        if not earns_its_place(some_b, some_c, pupils, config, notes, first_look=True):
            interest, pupils = None, NOBODY
    earlier = training_rows(b, found_b, interest, catalogue, config)
    later = training_rows(c, found_c, interest, catalogue, config)
    if interest is not None and not earns_its_place(earlier, later, pupils, config, notes):
        interest, pupils = None, NOBODY
        earlier, later = (replace(rows, rows=without_interest(rows.rows)) for rows in (earlier, later))
    if interest is not None:
        between = None
    further = further_rows(between, catalogue, config, hide_seen=hide_seen)
    ranker = train_ranker(without_users(earlier, pupils), later, config, notes, further=further)
    recent = sample_users(later.rows, DRIFT_ROWS, config.seed)
    if hide_seen:
        return SecondStage(interest, ranker, None, recent)
    found_b, found_c = (retrieve(window, config, hide_seen=True) for window in (b, c))
    earlier = without_users(training_rows(b, found_b, interest, catalogue, config), pupils)
    later = training_rows(c, found_c, interest, catalogue, config)
    further = further_rows(between, catalogue, config, hide_seen=True)
    new_ranker = train_ranker(earlier, later, config, notes, further=further, what="ranker of new items")
    return SecondStage(interest, ranker, new_ranker, recent)


def further_rows(
    window: LabelWindow | None, catalogue: Catalogue, config: RecommenderConfig, *, hide_seen: bool
) -> TrainingSet | None:
    """`training_rows` of a window, without interest score; None where there is no window."""
    if window is None:
        return None
    return training_rows(window, retrieve(window, config, hide_seen=hide_seen), None, catalogue, config)


def retrieve(window: LabelWindow, config: RecommenderConfig, *, hide_seen: bool) -> pl.DataFrame:
    """Candidates, without features, of the users who took one of them; block by block, the others teach nothing."""
    people, retriever = window.people, window.snapshot.retriever
    nothing = np.zeros(window.snapshot.statistics.height, dtype=np.bool_)
    parts = []
    for start in tqdm(range(0, max(1, len(people)), USERS_PER_BLOCK), desc="retrieve", disable=not config.progress):
        block = people.slice(start, start + USERS_PER_BLOCK)
        found = to_frame(to_columns(retriever.retrieve(block.histories, blocked=nothing, hide_seen=hide_seen)))
        found = found.with_columns(pl.col("user_row") + pl.lit(start, dtype=pl.Int32))
        taken = found.join(window.labels, on=["user_row", "item_row"], how="semi")["user_row"].unique()
        parts.append(found.filter(pl.col("user_row").is_in(taken.implode())))
    return pl.concat(parts)


def train_interest(
    window: LabelWindow,
    candidates: pl.DataFrame,
    encoder: BiEncoder | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
    device: str,
    notes: Notes,
) -> tuple[InterestModel | None, npt.NDArray[np.int32]]:
    """The cross-encoder: one taken item of each user against retrieved ones that he did not take.

    It starts from the layers of the text encoder, which has read the catalogue already.

    Returns:
        The model, or None; and the rows of the users that it learnt from.
    """
    if config.n_interest == 0:
        notes.add("interest model: switched off (n_interest = 0).")
    if config.n_interest == 0 or encoder is None:
        return None, NOBODY
    users, histories, groups = interest_groups(window, candidates, catalogue, config)
    if len(groups) < MIN_INTEREST_USERS:
        notes.add(
            f"interest model: left out, {len(groups)} users to learn from and {MIN_INTEREST_USERS} are needed.",
            level=logging.WARNING,
        )
        return None, NOBODY
    with TemporaryDirectory() as folder:
        encoder.save(Path(folder))
        model = InterestModel(config.interest, checkpoint=folder, device=device, seed=config.seed)
        model.fit(histories, groups, max_seconds=budget(config, INTEREST_SHARE), progress=config.progress)
    notes.add(f"interest model: fine-tuned on the lists of {len(groups)} users.")
    return model, users


def interest_groups(
    window: LabelWindow, candidates: pl.DataFrame, catalogue: Catalogue, config: RecommenderConfig
) -> tuple[npt.NDArray[np.int32], list[str], list[list[str]]]:
    """Some users' rows and history texts, and for each the taken item's text followed by texts of others."""
    rng = np.random.default_rng(config.seed)
    others = candidates.join(window.labels, on=["user_row", "item_row"], how="anti")
    others = others.filter(pl.int_range(pl.len()).over("user_row") < NEGATIVE_DEPTH)
    negatives = dict(others.group_by("user_row").agg("item_row").iter_rows())
    taken = dict(window.labels.group_by("user_row", maintain_order=True).agg("item_row").iter_rows())
    texts = history_texts(window.people, catalogue)
    most = min(config.interest.max_groups, int(PUPIL_SHARE * len(taken)))
    users, groups = [], []
    for user in rng.permutation(np.array(sorted(taken), dtype=np.int32)):
        if not (texts[user] and negatives.get(user)):
            continue
        n_others = min(config.interest.group_size - 1, len(negatives[user]))
        chosen = rng.choice(negatives[user], n_others, replace=False)
        group = [catalogue.short_text_of(row) for row in (rng.choice(taken[user]), *chosen)]
        if set(group[1:]) - {group[0]}:  # items with the text of the taken one teach nothing
            users.append(user)
            groups.append(group)
        if len(groups) >= most:
            break
    return np.array(users, dtype=np.int32), [texts[user] for user in users], groups


def training_rows(
    window: LabelWindow,
    candidates: pl.DataFrame,
    interest: InterestModel | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
) -> TrainingSet:
    """Labelled candidates with features of the users who have a taken one, at most `max_ranker_rows` of them.

    Args:
        window: labels, people and items as of its start.
        candidates: of the window's users, from `retrieve`.
        interest: scores the best candidates, or None.
        catalogue: the items.
        config: everything else.
    """
    labels = window.labels
    taken = candidates.join(labels, on=["user_row", "item_row"], how="semi")["user_row"].unique().sort()
    chosen = taken
    if len(taken) > (most := _most_users(candidates, config.max_ranker_rows)):
        chosen = taken.sample(most, seed=config.seed)
    columns = describe(
        of_frame(candidates.filter(pl.col("user_row").is_in(chosen.implode()))), window.people, window.snapshot,
        interest, catalogue, config, progress=config.progress,
    )  # fmt: skip
    training = label_candidates(
        to_frame(columns), labels.filter(pl.col("user_row").is_in(chosen.implode())), seed=config.seed
    )
    return replace(training, n_dropped=labels["user_row"].n_unique() - len(taken))


def _most_users(candidates: pl.DataFrame, max_rows: int) -> int:
    """How many users' candidates fit into so many rows."""
    per_user = candidates.height / max(1, candidates["user_row"].n_unique())
    return max(MIN_RANKER_USERS, int(max_rows / max(1.0, per_user)))


def report_drift(training: pl.DataFrame, serving: pl.DataFrame, seed: int, notes: Notes) -> None:
    """Say how well lists of the last label window and of now can be told apart, and warn of scores that moved."""
    if min(rows["user_row"].n_unique() for rows in (training, serving)) < 2:
        return
    names = [name for name in feature_names(training, exclude=NOT_FEATURES) if name in serving]
    drift = measure_drift(training, serving, names, seed=seed)
    notes.add(
        f"drift: by what differs within them, a classifier tells lists that the ranker learnt from and lists of now "
        f"apart with an area of {drift.auc:.2f} under the ROC curve (0.5: not at all, limit {MAX_AUC}), most by "
        f"{', '.join(drift.drivers) or 'nothing'}.",
        level=logging.WARNING if drift.auc > MAX_AUC else logging.INFO,
    )
    for name, shift in drift.shifts.items():
        if name.endswith("_score") and shift > MAX_SHIFT:
            notes.add(
                f"drift: {name} is distributed otherwise now than where the ranker learnt from it "
                f"(Kolmogorov-Smirnov distance {shift:.2f}, limit {MAX_SHIFT}).",
                level=logging.WARNING,
            )
