"""Will this user take this item: the rows that the heads learn from, the heads of a fit, and asking them.

Owns which users and pairs are drawn, with which weights, and which users serve for training, calibration and report.
What a pair looks like is `recsys/candidates.py`, what a head is `ranking/probability.py`.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.features import feature_names
from ranking.probability import HeadConfig, ProbabilityHead
from recsys.candidates import describe, of_frame, to_columns, to_frame
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.notes import Notes
from recsys.probability_report import ProbabilityReport, best_threshold, report
from recsys.snapshot import People, Snapshot, gather_people
from recsys.windows import WindowKind, Windows, moments

ANY = "any"
"""Name of the head for events of every kind."""

N_USERS = 2000  # per window
N_CANDIDATES = 60  # per user, of those not taken, as are the next two
N_OWN = 15
N_OTHERS = 30
N_FOLDS = 10
REPORT_FOLDS = 3  # of the ten: users of window C that neither training nor calibration reads
MIN_POSITIVES = {"training": 50, "calibration": 20, "report": 20}
USERS_PER_BLOCK = 512
DAY = 86_400.0
HEADS = "heads.json"

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairReports:
    """How good the probabilities of one kind of event are, on users that nothing was learnt from.

    Attributes:
        candidates: over the pairs of a user and an item that stage 1 proposes to him.
        pairs: over all pairs of a user and an item of the catalogue.
    """

    candidates: ProbabilityReport
    pairs: ProbabilityReport


@dataclass(frozen=True, slots=True)
class Probabilities:
    """The heads of a fit by kind of event, `ANY` among them, and their reports."""

    heads: Mapping[str, ProbabilityHead]
    reports: Mapping[str, PairReports]

    def save(self, folder: Path) -> None:
        """Write each head into a numbered folder, and their names and reports as JSON."""
        for place, head in enumerate(self.heads.values()):
            head.save(folder / str(place))
        facts = [{"event": event, "reports": asdict(self.reports[event])} for event in self.heads]
        (folder / HEADS).write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, config: HeadConfig, *, seed: int) -> Self:
        """Read what `save` wrote. Check the files' hashes first: a damaged model can abort the process."""
        heads, reports = {}, {}
        for place, facts in enumerate(json.loads((folder / HEADS).read_text(encoding="utf-8"))):
            heads[facts["event"]] = ProbabilityHead.load(folder / str(place), config, seed=seed)
            read = {name: ProbabilityReport.from_dict(values) for name, values in facts["reports"].items()}
            reports[facts["event"]] = PairReports(**read)
        return cls(heads, reports)


@dataclass(frozen=True, slots=True)
class Asker:
    """Describes pairs as of a snapshot, at training and at serving alike.

    Attributes:
        snapshot: sources and statistics.
        catalogue: the items.
        config: depths and windows of counts.
        hide_seen: whether candidates leave out what a user has taken; such a pair has no scores of stage 1 then.
    """

    snapshot: Snapshot
    catalogue: Catalogue
    config: RecommenderConfig
    hide_seen: bool

    def propose(self, people: People) -> pl.DataFrame:
        """Stage 1's candidates: `user_row`, `item_row`, scores and ranks."""
        nothing = np.zeros(len(self.catalogue), dtype=np.bool_)
        found = self.snapshot.retriever.retrieve(people.histories, blocked=nothing, hide_seen=self.hide_seen)
        return to_frame(to_columns(found))

    def describe(self, pairs: pl.DataFrame, proposed: pl.DataFrame, people: People) -> pl.DataFrame:
        """Features of the pairs; scores and ranks of stage 1 are null where it does not propose the item."""
        known = pairs.join(proposed, on=["user_row", "item_row"], how="left", maintain_order="left")
        return to_frame(describe(of_frame(known), people, self.snapshot, None, self.catalogue, self.config))

    def predict(self, head: ProbabilityHead, pairs: pl.DataFrame, people: People) -> FloatArray:
        """Probabilities of the pairs, (n_pairs,), in their order; block by block, so that memory stays bounded.

        Args:
            head: of the kind of event asked about.
            pairs: `user_row` and `item_row`, Int32; repetitions are answered each.
            people: the users; each has history.
        """
        found = np.zeros(pairs.height)
        numbered = pairs.with_row_index("_pair")
        for start in range(0, len(people), USERS_PER_BLOCK):
            block = people.slice(start, start + USERS_PER_BLOCK)
            inside = numbered.filter(pl.col("user_row").is_between(start, start + len(block) - 1))
            inside = inside.with_columns(pl.col("user_row") - pl.lit(start, dtype=pl.Int32))
            rows = self.describe(inside, self.propose(block), block)
            found[rows["_pair"].to_numpy()] = head.predict(rows)
        return found


def learn_probabilities(
    windows: Windows,
    snapshots: tuple[Snapshot, Snapshot],
    numbered: Callable[[pl.DataFrame], pl.DataFrame],
    numbers: pl.DataFrame | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
    notes: Notes,
    *,
    hide_seen: bool,
) -> Probabilities:
    """One head for every kind of event that is frequent enough, and one for all of them.

    Heads learn from window B, are calibrated on window C, and measured on users of C that neither has seen.

    Args:
        windows: A | B | C.
        snapshots: as of the starts of B and C, with the same weights of the sources.
        numbered: interactions to `user_id`, `item_row`, `seconds`, `event_row`.
        numbers: of the users, or None.
        catalogue: the items.
        config: everything else.
        notes: what was left out is said here.
        hide_seen: see `Asker`.
    """
    users = windows.history_c.select(pl.col("user_id").unique().sort())
    places = np.random.default_rng(config.seed).permutation(users.height)
    folds = users.with_columns(fold=pl.Series(places % N_FOLDS, dtype=pl.Int32))
    learners = windows.history_b.join(folds.filter(pl.col("fold") >= REPORT_FOLDS), on="user_id", how="semi")
    parts = (
        (learners, windows.labels_b, windows.start_b, snapshots[0]),
        (windows.history_c, windows.labels_c, windows.start_c, snapshots[1]),
    )
    earlier, later = (
        _draw(
            draw_users(history, labels, windows.kind, start, seed=config.seed).join(folds, on="user_id"),
            history,
            labels,
            Asker(snapshot, catalogue, config, hide_seen),
            numbered,
            numbers,
        )
        for history, labels, start, snapshot in parts
    )
    names = {*windows.labels_b["event"], *windows.labels_c["event"]}
    kinds = sorted(names - {ANY})
    heads, reports = {}, {}
    for event in (ANY, *(kinds if len(names) > 1 else ())):
        stages = _stages(earlier.labelled(event), later.labelled(event))
        if _enough(stages, event, notes):
            heads[event] = _learn_head(stages, earlier.features, config)
            reports[event] = _measure(heads[event], stages, horizon_of(windows))
            notes.add(_sentence(event, reports[event].candidates))
    if heads and names == set(kinds[:1]):
        heads[kinds[0]], reports[kinds[0]] = heads[ANY], reports[ANY]
    return Probabilities(heads, reports)


def horizon_of(windows: Windows) -> str:
    """What the probabilities are of, in words: as long a time as window C lasts, or the next interaction."""
    if windows.start_c is None:
        return "his next interaction"
    return f"within {(windows.end - windows.start_c).total_seconds() / DAY:.1f} days"


def draw_users(
    history: pl.DataFrame, labels: pl.DataFrame, kind: WindowKind, start: datetime | None, *, seed: int
) -> pl.DataFrame:
    """Users with history, at most `N_USERS`: half of them with labels in the window where there are enough.

    With windows of kind "last" all of them have one: the probability is then of the next interaction.

    Returns:
        `user_id`, `moment` (Unix seconds), `user_weight` (how many users each stands for), sorted by `user_id`.
    """
    known = moments(history, kind, start).with_columns(pl.col("moment").dt.epoch("us") / 1e6)
    back = known.join(labels, on="user_id", how="semi")
    away = known.join(labels, on="user_id", how="anti") if kind == "time" else known.clear()
    n_back = min(back.height, max(N_USERS // 2, N_USERS - away.height))
    sizes = ((back, n_back), (away, min(away.height, N_USERS - n_back)))
    return pl.concat(
        part.sort("user_id").sample(n, seed=seed).with_columns(user_weight=pl.lit(part.height / max(n, 1)))
        for part, n in sizes
    ).sort("user_id")


def draw_pairs(
    proposed: pl.DataFrame, own: pl.DataFrame, taken: pl.DataFrame, *, n_users: int, n_items: int, seed: int
) -> pl.DataFrame:
    """Pairs that stand for all pairs of the users and the catalogue.

    All that was taken; and for each user some of the candidates, of his own earlier items and of all other items that
    he did not take, each uniformly at random.

    Args:
        proposed: `user_row`, `item_row` of the candidates.
        own: the same of the users' histories.
        taken: the same of the label window.
        n_users: user rows are below.
        n_items: item rows are below.
        seed: of the draw.

    Returns:
        `user_row`, `item_row`, `weight`: how many pairs each stands for; they sum to `n_items` for each user but for
        those whose other items escaped the draw.
    """
    keys = ["user_row", "item_row"]
    layers = [
        part.select(pl.col(keys).cast(pl.Int32), limit=pl.lit(limit, dtype=pl.Int32))
        for part, limit in ((taken, None), (proposed, N_CANDIDATES), (own, N_OWN))
    ]
    known = pl.concat(layers).unique(keys, keep="first", maintain_order=True)
    rng = np.random.default_rng(seed)
    drawn = {
        "user_row": np.repeat(np.arange(n_users, dtype=np.int32), N_OTHERS),
        "item_row": rng.integers(n_items, size=n_users * N_OTHERS, dtype=np.int32),
    }
    others = pl.DataFrame(drawn).unique(maintain_order=True).join(known, on=keys, how="anti", maintain_order="left")
    sizes = known.group_by("user_row").agg(n_known=pl.len())
    others = others.join(sizes, on="user_row", how="left", maintain_order="left").select(
        *keys, weight=(n_items - pl.col("n_known").fill_null(0)) / pl.len().over("user_row")
    )
    shuffled = known.select(pl.all().gather(pl.lit(rng.permutation(known.height))))
    group = ["user_row", "limit"]
    size, place = pl.len().over(group), pl.int_range(pl.len()).over(group)
    kept = shuffled.with_columns(weight=size / pl.min_horizontal(size, "limit"), place=place)
    kept = kept.filter((pl.col("place") < pl.col("limit")).fill_null(True))
    return pl.concat([kept.select(*keys, "weight"), others]).sort(keys)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The pairs of one window.

    Attributes:
        rows: `user_row`, `item_row`, `weight`, `fold` and the features.
        taken: `user_row`, `item_row`, `event` of the window.
        features: their names.
    """

    rows: pl.DataFrame
    taken: pl.DataFrame
    features: list[str]

    def labelled(self, event: str) -> pl.DataFrame:
        """The rows with `label`, in an order of their own: training reads it, and joins do not promise one."""
        chosen = self.taken if event == ANY else self.taken.filter(pl.col("event") == event)
        label = chosen.select("user_row", "item_row", label=pl.lit(1, dtype=pl.Int8)).unique()
        rows = self.rows.join(label, on=["user_row", "item_row"], how="left")
        return rows.with_columns(pl.col("label").fill_null(0)).sort("user_row", "item_row")


def _draw(
    users: pl.DataFrame,
    history: pl.DataFrame,
    labels: pl.DataFrame,
    asker: Asker,
    numbered: Callable[[pl.DataFrame], pl.DataFrame],
    numbers: pl.DataFrame | None,
) -> _Drawn:
    """Pairs of the users as of the window's start, and what they took in it."""
    rows = users.with_row_index("user_row").cast({"user_row": pl.Int32})
    events = numbered(history.join(users, on="user_id", how="semi"))
    people = gather_people(events, users["user_id"], users["moment"], numbers)
    taken = labels.with_columns(item_row=pl.Series(asker.catalogue.rows_of(labels["item_id"]), dtype=pl.Int32))
    taken = taken.join(rows, on="user_id").select("user_row", "item_row", "event").unique()
    proposed = asker.propose(people)
    pairs = draw_pairs(
        proposed, people.history, taken, n_users=len(people), n_items=len(asker.catalogue), seed=asker.config.seed
    )
    frame = asker.describe(pairs.select("user_row", "item_row"), proposed, people)
    names = feature_names(frame, exclude=("user_row", "item_row"))
    weighted = pairs.join(rows, on="user_row").select(
        "user_row", "item_row", "fold", weight=pl.col("weight") * pl.col("user_weight")
    )
    return _Drawn(frame.join(weighted, on=["user_row", "item_row"]), taken, names)


def _stages(earlier: pl.DataFrame, later: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Rows by what they serve for; the first of the learning folds ends the training."""
    return {
        "training": earlier.filter(pl.col("fold") > REPORT_FOLDS),
        "validation": earlier.filter(pl.col("fold") == REPORT_FOLDS),
        "calibration": later.filter(pl.col("fold") >= REPORT_FOLDS),
        "report": later.filter(pl.col("fold") < REPORT_FOLDS),
    }


def _enough(stages: Mapping[str, pl.DataFrame], event: str, notes: Notes) -> bool:
    """Whether every stage has enough pairs that were taken and any that were not; if not, a note says so."""
    found = {name: int(stages[name]["label"].sum()) for name in MIN_POSITIVES}
    enough = all(least <= found[name] < stages[name].height for name, least in MIN_POSITIVES.items())
    enough &= not stages["validation"].is_empty()
    if not enough:
        counts = ", ".join(f"{found[name]} for {name} ({least} needed)" for name, least in MIN_POSITIVES.items())
        notes.add(f"probabilities: event {event!r} is left out, taken pairs: {counts}.", level=logging.WARNING)
    return enough


def _learn_head(stages: Mapping[str, pl.DataFrame], features: list[str], config: RecommenderConfig) -> ProbabilityHead:
    head = ProbabilityHead(config.heads, seed=config.seed)
    head.fit(stages["training"], stages["validation"], features, progress=config.progress)
    return head.calibrate(stages["calibration"])


def _measure(head: ProbabilityHead, stages: Mapping[str, pl.DataFrame], horizon: str) -> PairReports:
    """Reports over candidates and over all pairs; the threshold is taken from the calibration rows."""
    threshold = best_threshold(*_columns(head, stages["calibration"]))
    rows = stages["report"]
    proposed = rows.filter(pl.col("stage1_score").is_not_null())
    candidates, pairs = (
        report(
            *_columns(head, part),
            n_users=part["user_row"].n_unique(),
            threshold=threshold,
            method=head.method,
            horizon=horizon,
        )
        for part in (proposed, rows)
    )
    return PairReports(candidates, pairs)


def _columns(head: ProbabilityHead, rows: pl.DataFrame) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Labels, probabilities, weights."""
    label, weight = (rows[name].cast(pl.Float64).to_numpy() for name in ("label", "weight"))
    return label, head.predict(rows), weight


def _sentence(event: str, measured: ProbabilityReport) -> str:
    return (
        f"probabilities: event {event!r} {measured.horizon}, calibrated by {measured.method}; on the candidates of "
        f"{measured.n_users} held-out users base rate {measured.base_rate:.4f}, AUC {measured.auc:.3f}, log-loss "
        f"{measured.log_loss:.4f}."
    )
