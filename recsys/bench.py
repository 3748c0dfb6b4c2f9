"""Offline evaluation: data set -> split -> systems -> table.

Owns which systems are compared, on which pairs, and by which numbers. The cut is made by `splits`, every number by
`metrics`, the lists by the systems themselves; what a result looks like is `bench_result`'s.

`run_bench` is the whole line. Its steps are public, for whoever also wants the fitted recommender:

    prepared = prepare(dataset, config)
    baselines = ask_baselines(prepared)
    ours = fit_ours(prepared)
    result = report(prepared, [*baselines, *ask_ours(prepared, ours)], notes=ours.recommender.notes)

The baselines come first, so that their peak memory does not hold our models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import polars as pl
from tqdm import tqdm

from recsys import metrics, splits
from recsys.baselines import BuyAgain, ItemKNN, Popular, RecentPopular
from recsys.bench_result import BenchResult, Difference, Row, Table
from recsys.bundle import library_versions
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.device import resolve_device
from recsys.errors import InvalidConfig, InvalidData
from recsys.notes import Notes
from recsys.pipeline import decide_seen
from recsys.profiling import Usage, machine, metered
from recsys.recommender import Recommender
from recsys.schema import Tables, validate
from recsys.splits import Split, SplitKind

DEPTH = 100
"""How many candidates of each system are looked at."""

REPEATS = "repeats counted"
NEW_ONLY = "new items only"
TWO_STAGE = "two-stage"
RETRIEVAL = "two-stage: retrieval"
BI_ENCODER = "two-stage: bi-encoder"
BUY_AGAIN = "buy-again"
BASELINES: dict[str, Callable[[], Popular | RecentPopular | ItemKNN | BuyAgain]] = {
    "popular": Popular,
    "recent-popular": RecentPopular,
    "item-knn": ItemKNN,
    BUY_AGAIN: BuyAgain,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Which pairs count as right.

    Attributes:
        name: "repeats counted" or "new items only".
        filter_seen: whether the systems leave out what a user has already taken.
        truth: distinct `user_id`, `item_id` to be found; every user has history in train. Sorted.
    """

    name: str
    filter_seen: bool
    truth: pl.DataFrame

    @property
    def users(self) -> pl.Series:
        """Whom the systems are asked for, sorted."""
        return self.truth["user_id"].unique().sort()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One cut of one data set, the same for every system.

    Attributes:
        dataset: name of the data set.
        tables: all of it, validated.
        split: train and test.
        protocols: at least one.
        config: of our system; its `seed` also draws the bootstrap samples.
        k: length of the lists.
        notes: sentences that belong beside every number.
    """

    dataset: str
    tables: Tables
    split: Split
    protocols: tuple[Protocol, ...]
    config: RecommenderConfig
    k: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one system answered under one protocol.

    Attributes:
        system: its name.
        protocol: the protocol's name.
        lists: `user_id`, `item_id`, `rank`: the first k, in final order.
        candidates: the same columns, the first `DEPTH` before the final order.
        fit: what the fit took.
        ask: what the lists took.
    """

    system: str
    protocol: str
    lists: pl.DataFrame
    candidates: pl.DataFrame
    fit: Usage
    ask: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """Our recommender, fitted on train, and what that took."""

    recommender: Recommender
    fit: Usage


def run_bench(
    dataset: Dataset,
    config: RecommenderConfig | None = None,
    *,
    split: SplitKind = "time",
    test_share: float = 0.1,
    min_items: int = 5,
    k: int = 10,
    progress: bool = False,
) -> BenchResult:
    """Fit the baselines and our system on one split and measure them under each protocol.

    Args:
        dataset: the tables.
        config: of our system.
        split: "time" cuts everybody at one moment, "leave-last-out" holds out each user's last interaction.
        test_share: share of the interactions to test on, for "time".
        min_items: distinct items a test user has, for "leave-last-out".
        k: length of the lists, 1 to 100.
        progress: show bars on stderr.

    Raises:
        InvalidData: a table breaks a rule, or no test user has history in train.
        InvalidConfig: a value is out of its range.
        DeviceUnavailable: the configured device is not there.
    """
    prepared = prepare(dataset, config, split=split, test_share=test_share, min_items=min_items, k=k, progress=progress)
    baselines = ask_baselines(prepared)
    ours = fit_ours(prepared)
    return report(prepared, [*baselines, *ask_ours(prepared, ours)], notes=ours.recommender.notes)


def prepare(
    dataset: Dataset,
    config: RecommenderConfig | None = None,
    *,
    split: SplitKind = "time",
    test_share: float = 0.1,
    min_items: int = 5,
    k: int = 10,
    progress: bool = False,
) -> Prepared:
    """Validate, cut, and decide what counts; see `run_bench` for arguments and errors.

    Repeats count where they are as common as `config.repeat_limit` says; "new items only" is always measured, unless
    no test pair is new. Test users without history in train are counted in a note and left out of every number.
    """
    if not 1 <= k <= DEPTH:
        raise InvalidConfig(f"k is {k}; it must lie between 1 and {DEPTH}, the depth to which candidates are looked at")
    config = replace(config or RecommenderConfig(), progress=progress)
    resolve_device(config.device)  # our fit would find out too, but minutes later
    tables = validate(dataset.interactions, dataset.items, dataset.users, unknown_items=config.unknown_items)
    repeats = not decide_seen(tables.interactions, config, Notes(()))
    cut = splits.split(tables.interactions, split, test_share=test_share, min_items=min_items, repeats=repeats)
    protocols, left_out = _protocols(cut, repeats=repeats)
    return Prepared(
        dataset=dataset.name,
        tables=tables,
        split=cut,
        protocols=protocols,
        config=config,
        k=k,
        notes=(*tables.notes, *cut.notes, left_out),
    )


def ask_baselines(prepared: Prepared) -> list[Answers]:
    """Fit each baseline and ask it for lists under each protocol; buy-again only where repeats count."""
    bar = tqdm(BASELINES, desc="baselines", disable=not prepared.config.progress, mininterval=1.0)
    return [answers for name in bar for answers in _ask_baseline(name, prepared)]


def fit_ours(prepared: Prepared) -> Ours:
    """Fit our recommender on train and the whole catalogue."""
    tables = prepared.tables
    recommender, usage = metered(
        lambda: Recommender(prepared.config).fit(prepared.split.train, tables.items, tables.users)
    )
    return Ours(recommender=recommender, fit=usage)


def ask_ours(prepared: Prepared, ours: Ours) -> list[Answers]:
    """Ask our recommender for lists under each protocol: those of stage 1, and those of both stages."""
    return [answers for protocol in prepared.protocols for answers in _ask_stages(protocol, prepared.k, ours)]


def report(prepared: Prepared, answers: Sequence[Answers], *, notes: Sequence[str] = ()) -> BenchResult:
    """Measure what the systems answered.

    Args:
        prepared: what they were asked.
        answers: of each system under each protocol, in the order of the rows.
        notes: further sentences, for example those of our fit.
    """
    tables, cut = prepared.tables, prepared.split
    counts = {
        "interactions": tables.interactions.height,
        "items": tables.items.height,
        "users": tables.interactions["user_id"].n_unique(),
        "train": cut.train.height,
        "test": cut.test.height,
    }
    return BenchResult(
        dataset=prepared.dataset,
        counts=counts,
        split=cut.kind,
        as_of=cut.as_of.isoformat(),
        test_hash=cut.test_hash,
        k=prepared.k,
        seed=prepared.config.seed,
        config=asdict(prepared.config),
        versions=library_versions(),
        machine=machine(),
        notes=tuple(dict.fromkeys((*prepared.notes, *notes))),
        tables=tuple(_table(protocol, prepared, answers) for protocol in prepared.protocols),
    )


def _protocols(cut: Split, *, repeats: bool) -> tuple[tuple[Protocol, ...], str]:
    """The protocols that have anything to be found, and a sentence about the users whom none of them holds."""
    pairs = cut.test.select("user_id", "item_id").unique().sort("user_id", "item_id")
    known = pairs.join(cut.train, on="user_id", how="semi", maintain_order="left")
    new = known.join(cut.train, on=["user_id", "item_id"], how="anti", maintain_order="left")
    made = (
        *([Protocol(name=REPEATS, filter_seen=False, truth=known)] if repeats and known.height else []),
        *([Protocol(name=NEW_ONLY, filter_seen=True, truth=new)] if new.height else []),
    )
    if not made:
        raise InvalidData(
            table="interactions",
            rule=f"the {cut.kind} split leaves nothing to test: no pair that counts is of a user with history in train",
            count=cut.test.height,
            total=cut.train.height + cut.test.height,
            remedy="bring more interactions, take the other split, a larger test_share or a smaller min_items",
        )
    n_users, n_known = pairs["user_id"].n_unique(), known["user_id"].n_unique()
    return made, f"{n_users - n_known} of {n_users} test users have no history in train and are in no table."


def _ask_baseline(name: str, prepared: Prepared) -> list[Answers]:
    # Without the items that a user has had, buy-again is the same as popular.
    protocols = [asked for asked in prepared.protocols if name != BUY_AGAIN or not asked.filter_seen]
    if not protocols:
        return []
    cut, items = prepared.split, prepared.tables.items
    system, fit = metered(lambda: BASELINES[name]().fit(cut.train, items, as_of=cut.as_of))
    answers = []
    for protocol in protocols:
        recommend = partial(system.recommend, protocol.users, DEPTH, filter_seen=protocol.filter_seen)
        found, ask = metered(recommend)
        first = found.filter(pl.col("rank") <= prepared.k)
        answers.append(Answers(system=name, protocol=protocol.name, lists=first, candidates=found, fit=fit, ask=ask))
    return answers


def _ask_stages(protocol: Protocol, k: int, ours: Ours) -> list[Answers]:
    users, seen = protocol.users, protocol.filter_seen
    found, retrieving = metered(lambda: ours.recommender.retrieve(users, DEPTH, filter_seen=seen))
    final, ranking = metered(lambda: ours.recommender.recommend(users, k, filter_seen=seen))
    asked = [(RETRIEVAL, found, found, retrieving), (TWO_STAGE, final, found, ranking)]
    if "vector" in ours.recommender.sources:
        near, searching = metered(lambda: ours.recommender.retrieve(users, DEPTH, filter_seen=seen, sources="vector"))
        asked.insert(0, (BI_ENCODER, near, near, searching))
    return [
        Answers(
            system=name,
            protocol=protocol.name,
            lists=lists.filter(pl.col("rank") <= k),
            candidates=candidates,
            fit=ours.fit,
            ask=ask,
        )
        for name, lists, candidates, ask in asked
    ]


def _table(protocol: Protocol, prepared: Prepared, answers: Sequence[Answers]) -> Table:
    mine = [answer for answer in answers if answer.protocol == protocol.name]
    cold = protocol.truth.join(prepared.split.train, on="item_id", how="anti")
    hits = {answer.system: metrics.hit_matrix(answer.lists, protocol.truth, prepared.k) for answer in mine}
    ndcg = {system: metrics.ndcg(found, prepared.k) for system, found in hits.items()}
    return Table(
        protocol=protocol.name,
        n_users=len(protocol.users),
        n_pairs=protocol.truth.height,
        n_cold_pairs=cold.height,
        rows=tuple(_row(answer, hits[answer.system], protocol, cold, prepared) for answer in mine),
        differences=_differences(ndcg, prepared.config.seed),
    )


def _row(answer: Answers, hits: metrics.Hits, protocol: Protocol, cold: pl.DataFrame, prepared: Prepared) -> Row:
    k = prepared.k
    ndcg = metrics.ndcg(hits, k)
    low, high = metrics.bootstrap_interval(ndcg, seed=prepared.config.seed)
    return Row(
        system=answer.system,
        ndcg=float(ndcg.mean()),
        ndcg_low=low,
        ndcg_high=high,
        recall=float(metrics.recall(hits, k).mean()),
        candidate_recall=_candidate_recall(answer.candidates, protocol.truth),
        coverage=metrics.coverage(answer.lists, prepared.tables.items.height, k),
        cold_recall=_pair_recall(answer.candidates, cold),
        fit_seconds=answer.fit.seconds,
        users_per_second=hits.n_relevant.size / answer.ask.seconds,
        peak_mb=max(answer.fit.peak_mb, answer.ask.peak_mb),
    )


def _candidate_recall(candidates: pl.DataFrame, truth: pl.DataFrame) -> float:
    return float(metrics.recall(metrics.hit_matrix(candidates, truth, DEPTH), DEPTH).mean())


def _pair_recall(candidates: pl.DataFrame, pairs: pl.DataFrame) -> float | None:
    """Share of the pairs that are among the candidates: over pairs, as most users have no cold one."""
    if pairs.is_empty():
        return None
    return pairs.join(candidates, on=["user_id", "item_id"], how="semi").height / pairs.height


def _differences(ndcg: Mapping[str, metrics.FloatArray], seed: int) -> tuple[Difference, ...]:
    """Both stages against everything else, then stage 1 against the baselines."""
    ours = [name for name in (TWO_STAGE, RETRIEVAL) if name in ndcg]
    pairs = [(name, other) for place, name in enumerate(ours) for other in ndcg if other not in ours[: place + 1]]
    made = []
    for system, other in pairs:
        difference, low, high = metrics.paired_bootstrap(ndcg[system], ndcg[other], seed=seed)
        made.append(Difference(system=system, other=other, difference=difference, low=low, high=high))
    return tuple(made)
