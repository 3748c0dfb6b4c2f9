"""From answers to numbers: metrics of every user, their means and intervals, and the tables of a result.

Owns which numbers a result holds. Definitions are in `recsys/metrics.py` and `beyond`, parts of users and items in
`segments`, suspicions in `leaks`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys import metrics
from recsys.bench import beyond, segments
from recsys.bench.comparison import differences
from recsys.bench.leaks import suspicions
from recsys.bench.learned import tfidf_vectors
from recsys.bench.names import BI_ENCODER, RETRIEVAL, SOURCE, TWO_STAGE
from recsys.bench.protocols import COLD_USERS, DEPTH, Cut, Prepared, Protocol
from recsys.bench.result import CANDIDATE_RECALL, CEILING, COLD_RECALL, BenchResult, CutInfo, Estimate, Row, Table
from recsys.bench.systems import Answers
from recsys.bundle import library_versions
from recsys.profiling import machine
from recsys.splits import hash_of
from recsys.text import item_texts

FloatArray = npt.NDArray[np.float64]

N_SAMPLES = 1000
ACCURACY = {
    "ndcg": metrics.ndcg,
    "recall": metrics.recall,
    "precision": metrics.precision,
    "hitrate": metrics.hitrate,
    "map": metrics.average_precision,
    "mrr": metrics.mrr,
}
FRAME_ORDER = ["protocol", "cut", "system", "user_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A result, and the long tables beside it: see `recsys/bench/result.py` for their columns."""

    result: BenchResult
    frames: dict[str, pl.DataFrame]


def user_metrics(prepared: Prepared) -> tuple[str, ...]:
    """Names of the metrics that every user has a value of, in the order of the columns."""
    accuracy = [f"{name}@{k}" for name in ACCURACY for k in prepared.ks]
    further = [f"{name}@{prepared.k}" for name in ("novelty", "ild", "popularity_lift", "serendipity")]
    return (*accuracy, *further, CANDIDATE_RECALL, COLD_RECALL, CEILING)


def report(
    prepared: Prepared, answers: Sequence[Answers], *, notes: Sequence[str] = (), n_samples: int = N_SAMPLES
) -> BenchResult:
    """Measure what the systems answered; see `measure`."""
    return measure(prepared, answers, notes=notes, n_samples=n_samples).result


def measure(
    prepared: Prepared,
    answers: Sequence[Answers],
    *,
    notes: Sequence[str] = (),
    n_samples: int = N_SAMPLES,
    reference: str | None = None,
) -> Measured:
    """Measure what the systems answered.

    Args:
        prepared: what they were asked.
        answers: of each system under each protocol of each cut, in the order of the rows.
        notes: further sentences, for example those of our fit.
        n_samples: of the bootstrap.
        reference: the system that every other one is compared with; by default see `compared`.
    """
    tables, cut = prepared.tables, prepared.split
    names = list(dict.fromkeys(protocol.name for part in prepared.cuts for protocol in part.protocols))
    vectors = tfidf_vectors(item_texts(tables.items))
    per_user = _per_user(prepared, answers, vectors)
    made = tuple(_protocol_table(name, prepared, answers, per_user, n_samples, reference) for name in names)
    counts = {
        "interactions": tables.interactions.height,
        "items": tables.items.height,
        "users": tables.interactions["user_id"].n_unique(),
        "train": cut.train.height,
        "test": cut.test.height,
    }
    said = tuple(dict.fromkeys((*prepared.notes, *notes)))
    result = BenchResult(
        dataset=prepared.dataset,
        counts=counts,
        description=describe(prepared),
        split=cut.kind,
        repeats=prepared.repeats,
        cuts=tuple(_info(part) for part in prepared.cuts),
        test_hash=hash_of(*(part.split.test for part in prepared.cuts)),
        k=prepared.k,
        ks=prepared.ks,
        n_samples=n_samples,
        seed=prepared.config.seed,
        user_metrics=user_metrics(prepared),
        systems=tuple(dict.fromkeys(answer.system for answer in answers)),
        config=asdict(prepared.config),
        settings=dict(prepared.settings),
        versions=library_versions(),
        machine=machine(),
        notes=said,
        flags=suspicions(prepared, made, said),
        tables=made,
    )
    return Measured(result=result, frames={"per_user": per_user, **_frames(prepared, answers)})


def describe(prepared: Prepared) -> dict[str, Any]:
    """What kind of data these are: density, repeats, cold users and items, time."""
    rows, items = prepared.tables.interactions, prepared.tables.items
    pairs = rows.select("user_id", "item_id").n_unique()
    train, test = prepared.split.train, prepared.split.test
    tested = test.select("user_id", "item_id").unique()
    users = tested.select("user_id").unique()
    first, last = rows["timestamp"][0], rows["timestamp"][-1]
    return {
        "density": pairs / (rows["user_id"].n_unique() * max(1, items.height)),
        "repeat_share": 1 - pairs / rows.height,
        "cold_user_share": _share(users.join(train, on="user_id", how="anti").height, users.height),
        "cold_item_share": _share(tested.join(train, on="item_id", how="anti").height, tested.height),
        "items_without_interactions": items.join(rows, on="item_id", how="anti").height,
        "first": first.isoformat(),
        "last": last.isoformat(),
        "days": (last - first).total_seconds() / 86_400,
        "events": dict(rows["event"].value_counts(sort=True).head(20).iter_rows()),
    }


def _values(prepared: Prepared, answer: Answers, vectors: Any) -> tuple[pl.Series, list[FloatArray]]:
    """The users of the truth, sorted, and one array for each of `user_metrics`."""
    cut, protocol = _asked(prepared, answer)
    truth, train, items, k = protocol.truth, cut.split.train, prepared.tables.items["item_id"], prepared.k
    lists = metrics.first_k(answer.lists, prepared.depth)
    hits = metrics.hit_matrix(lists, truth, prepared.depth)
    users = hits.users
    found = [metric(hits, depth) for metric in ACCURACY.values() for depth in prepared.ks]
    return users, [
        *found,
        beyond.novelty(lists, train, users, k),
        beyond.intra_list_diversity(lists, items, vectors, users, k),
        beyond.popularity_lift(lists, train, users, k),
        beyond.serendipity(lists, truth, train, users, k),
        *_candidate_values(answer, truth, train),
    ]


def _candidate_values(answer: Answers, truth: pl.DataFrame, train: pl.DataFrame) -> tuple[FloatArray, ...]:
    """Recall of the first candidates, the same of items new to the data, and of all that a second stage chose from."""
    n_chosen_from = max(DEPTH, int(answer.candidates["rank"].max() or 0))  # type: ignore[arg-type]
    candidates = metrics.first_k(answer.candidates, n_chosen_from)
    hits = metrics.hit_matrix(candidates, truth, n_chosen_from)
    new = metrics.hit_matrix(candidates, truth.join(train, on="item_id", how="anti"), DEPTH)
    cold, ceiling = np.full((2, len(hits.users)), np.nan)
    cold[hits.users.is_in(new.users.implode()).to_numpy()] = metrics.recall(new, DEPTH)
    if answer.staged:
        ceiling = metrics.recall(hits, n_chosen_from)
    return metrics.recall(hits, DEPTH), cold, ceiling


def _per_user(prepared: Prepared, answers: Sequence[Answers], vectors: Any) -> pl.DataFrame:
    names, parts = user_metrics(prepared), []
    for answer in answers:
        users, values = _values(prepared, answer, vectors)
        named = pl.DataFrame(dict(zip(names, values, strict=True))).fill_nan(None)
        keys = users.to_frame("user_id").select(
            protocol=pl.lit(answer.protocol),
            cut=pl.lit(answer.cut, dtype=pl.Int32),
            system=pl.lit(answer.system),
            user_id="user_id",
        )
        parts.append(pl.concat([keys, named], how="horizontal"))
    ids = prepared.tables.interactions.schema["user_id"]
    schema: dict[str, Any] = {"protocol": pl.String, "cut": pl.Int32, "system": pl.String, "user_id": ids}
    empty = pl.DataFrame(schema={**schema, **dict.fromkeys(names, pl.Float64)})
    return pl.concat([empty, *parts]).sort(FRAME_ORDER, maintain_order=True)


def _asked(prepared: Prepared, answer: Answers) -> tuple[Cut, Protocol]:
    cut = prepared.cuts[answer.cut]
    return cut, next(protocol for protocol in cut.protocols if protocol.name == answer.protocol)


def _protocol_table(
    name: str,
    prepared: Prepared,
    answers: Sequence[Answers],
    per_user: pl.DataFrame,
    n_samples: int,
    reference: str | None,
) -> Table:
    mine = [answer for answer in answers if answer.protocol == name]
    asked = [(cut, protocol) for cut in prepared.cuts for protocol in cut.protocols if protocol.name == name]
    truth = pl.concat([protocol.truth.with_columns(cut=pl.lit(cut.place)) for cut, protocol in asked])
    cold = pl.concat([protocol.truth.join(cut.split.train, on="item_id", how="anti") for cut, protocol in asked])
    systems = list(dict.fromkeys(answer.system for answer in mine))
    names = user_metrics(prepared)
    columns = {
        system: per_user.filter(protocol=name, system=system).select(names).to_numpy().astype(np.float64)
        for system in systems
    }
    people = per_user.filter(protocol=name, system=systems[0])["user_id"] if systems else pl.Series()
    owners = None if len(prepared.cuts) == 1 else (people.rank("dense").cast(pl.Int64) - 1).to_numpy()
    means = {
        system: metrics.bootstrap_means(values, n_samples=n_samples, seed=prepared.config.seed, owners=owners)
        for system, values in columns.items()
    }
    parts, gaps = segments.measure_segments(prepared, mine, name, n_samples=n_samples, cold_users=name == COLD_USERS)
    place = names.index(f"ndcg@{prepared.k}")
    main = {system: (values[:, place], means[system][:, place]) for system, values in columns.items()}
    return Table(
        protocol=name,
        filter_seen=asked[0][1].filter_seen,
        n_users=sum(len(protocol.users) for _, protocol in asked),
        n_pairs=truth.height,
        n_cold_pairs=cold.height,
        rows=tuple(
            _row(system, [answer for answer in mine if answer.system == system], prepared, estimates(values, names, m))
            for (system, values), m in zip(columns.items(), means.values(), strict=True)
        ),
        differences=differences(main, compared(systems, reference), f"ndcg@{prepared.k}", n_people=people.n_unique()),
        segments=parts,
        fairness=gaps,
    )


def compared(systems: Sequence[str], reference: str | None = None) -> list[tuple[str, str]]:
    """Who is compared with whom: no more than somebody asks, since each comparison makes the others' verdicts stricter.

    Both stages are compared with every other whole system, stage 1 with its parts. Without ours everything is compared
    with everything, with a reference that system with all others.
    """
    if reference is None and not {TWO_STAGE, RETRIEVAL} & {*systems}:
        return [(name, other) for place, name in enumerate(systems) for other in systems[place + 1 :]]
    main = reference or (TWO_STAGE if TWO_STAGE in systems else RETRIEVAL)
    whole = [(main, name) for name in systems if name != main and (main != TWO_STAGE or not name.startswith(SOURCE))]
    parts = [(RETRIEVAL, name) for name in systems if name == BI_ENCODER or name.startswith(SOURCE)]
    return [*(whole if main in systems else []), *(parts if main == TWO_STAGE and RETRIEVAL in systems else [])]


def estimates(values: FloatArray, names: Sequence[str], means: FloatArray) -> dict[str, Estimate]:
    """Mean and interval of every column; without a value it has neither, without one in any sample no interval."""
    made = {}
    for column, name in enumerate(names):
        known = values[:, column][~np.isnan(values[:, column])]
        drawn = means[:, column][~np.isnan(means[:, column])]
        if not len(known):
            made[name] = Estimate(mean=None)
            continue
        ends = [float(end) for end in np.quantile(drawn, [0.025, 0.975])] if len(drawn) else [None, None]
        made[name] = Estimate(mean=float(known.mean()), low=ends[0], high=ends[1])
    return made


def _row(system: str, answers: Sequence[Answers], prepared: Prepared, found: dict[str, Estimate]) -> Row:
    k, n_items = prepared.k, prepared.tables.items.height
    n_users = sum(len(_asked(prepared, answer)[1].users) for answer in answers)
    full = sum(_n_full(answer.lists, k) for answer in answers)
    seconds = sum(answer.ask.seconds for answer in answers)
    over_all = {
        f"coverage@{k}": float(np.mean([metrics.coverage(answer.lists, n_items, k) for answer in answers])),
        f"gini@{k}": float(np.mean([beyond.gini(answer.lists, n_items, k) for answer in answers])),
    }
    return Row(
        system=system,
        metrics={**found, **{name: Estimate(mean=value) for name, value in over_all.items()}},
        short_lists=n_users - full,
        calibration=_calibration(answers, prepared),
        fit_seconds=sum(answer.fit.seconds for answer in answers),
        ask_seconds=seconds,
        users_per_second=n_users / max(seconds, 1e-9),
        peak_mb=max(max(answer.fit.peak_mb, answer.ask.peak_mb) for answer in answers),
    )


def _n_full(lists: pl.DataFrame, k: int) -> int:
    """How many lists have k items."""
    return metrics.first_k(lists, k).filter(pl.col("place") == k - 1).height


def _calibration(answers: Sequence[Answers], prepared: Prepared) -> dict[str, Any] | None:
    """Over what was shown: was it taken as often as the scores say?"""
    if not all(answer.probabilities for answer in answers):
        return None
    scores, labels = [], []
    for answer in answers:
        truth = _asked(prepared, answer)[1].truth.with_columns(taken=pl.lit(1.0))
        shown = answer.lists.join(truth, on=["user_id", "item_id"], how="left", maintain_order="left")
        scores.append(shown["score"].to_numpy())
        labels.append(shown["taken"].fill_null(0.0).to_numpy())
    return beyond.calibration(np.concatenate(scores), np.concatenate(labels))


def _info(cut: Cut) -> CutInfo:
    split = cut.split
    return CutInfo(
        as_of=split.as_of.isoformat(), test_hash=split.test_hash, train=split.train.height, test=split.test.height
    )


def _frames(prepared: Prepared, answers: Sequence[Answers]) -> dict[str, pl.DataFrame]:
    """Lists, candidates and truth."""
    ids = {name: prepared.tables.interactions.schema[name] for name in ("user_id", "item_id")}
    keys = {"protocol": pl.String, "cut": pl.Int32}
    ranked = {**keys, "system": pl.String, **ids, "rank": pl.Int32, "score": pl.Float64}

    def stack(frames: list[pl.DataFrame], schema: Any, last: str) -> pl.DataFrame:
        whole = pl.concat(
            [pl.DataFrame(schema=schema), *(frame.select(*schema).cast(dict(schema)) for frame in frames)]
        )
        return whole.sort([name for name in FRAME_ORDER if name in schema] + [last], maintain_order=True)

    def named(frame: pl.DataFrame, answer: Answers) -> pl.DataFrame:
        return frame.with_columns(
            protocol=pl.lit(answer.protocol), cut=pl.lit(answer.cut), system=pl.lit(answer.system)
        )

    truth = [
        protocol.truth.with_columns(
            protocol=pl.lit(protocol.name),
            cut=pl.lit(cut.place),
            cold_item=~pl.col("item_id").is_in(cut.split.train["item_id"].unique().implode()),
        )
        for cut in prepared.cuts
        for protocol in cut.protocols
    ]
    staged = [named(answer.candidates, answer) for answer in answers if answer.staged]
    return {
        "lists": stack([named(answer.lists, answer) for answer in answers], ranked, "rank"),
        "candidates": stack(staged, {**ranked, "source": pl.String}, "rank"),
        "truth": stack(truth, {**keys, **ids, "cold_item": pl.Boolean}, "item_id"),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
