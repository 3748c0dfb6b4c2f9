"""Who answers: systems by name, fitted on train and asked for lists.

Owns the names. A two-stage system is fitted once for all its names: "two-stage", its retrieval, its single sources.
Anything with `fit(interactions, items, as_of=)` and `recommend(users, k, filter_seen=)` can stand beside them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from tqdm import tqdm

from recsys import baselines
from recsys.bench import learned
from recsys.bench.names import BI_ENCODER, BUY_AGAIN, NO_INTEREST, NO_TEXT, RETRIEVAL, SOURCE, SOURCES, TWO_STAGE
from recsys.bench.protocols import COLD_USERS, DEPTH, Cut, Prepared
from recsys.bench.protocols import Protocol as Asked
from recsys.bench.sharing import Ours, SharedFits
from recsys.config import RecommenderConfig
from recsys.errors import InvalidConfig, InvalidData, UnknownUsers
from recsys.profiling import Usage, metered

VARIANTS = (TWO_STAGE, NO_INTEREST, NO_TEXT)  # fits of ours; the first two share their stage 1
BASELINES: dict[str, Callable[[], Any]] = {
    "popular": baselines.Popular,
    "recent-popular": baselines.RecentPopular,
    "item-knn": baselines.ItemKNN,
    BUY_AGAIN: baselines.BuyAgain,
    "ease": learned.Ease,
    "tfidf": learned.TfIdf,
    "item-knn+tfidf": learned.KnnAndTfIdf,
    "ials": learned.Ials,
}
DEFAULT = ("popular", "recent-popular", "item-knn", BUY_AGAIN, BI_ENCODER, RETRIEVAL, TWO_STAGE)
LIST_COLUMNS = ("user_id", "item_id", "rank", "score")


class System(Protocol):
    """Anything that can be benchmarked.

    `recommend` gives `user_id`, `item_id`, `rank` (from 1) and `score`; it may raise `UnknownUsers` for users without
    history, who are then left out. Where `probabilities` is there and true, scores are probabilities and are checked
    as such.
    """

    def fit(self, interactions: pl.DataFrame, items: pl.DataFrame, *, as_of: Any) -> Any:
        """Learn from canonical tables; every row is before `as_of`, but for leaking splits."""

    def recommend(self, users: pl.Series, k: int, *, filter_seen: bool) -> pl.DataFrame:
        """The k best items of each user."""


Systems = Sequence[str] | Mapping[str, str | System]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one system answered under one protocol of one cut.

    Attributes:
        system: its name.
        protocol: the protocol's name.
        lists: `user_id`, `item_id`, `rank`, `score`: the first places, in final order.
        candidates: the same columns, the first `DEPTH` before the final order; of a system with two stages all that its
            second stage chose from, with `source`.
        fit: what the fit took.
        ask: what the lists took.
        cut: the place of the cut.
        staged: whether the candidates are those of a first stage of its own, and worth keeping.
        probabilities: whether the scores say that they are probabilities.
    """

    system: str
    protocol: str
    lists: pl.DataFrame
    candidates: pl.DataFrame
    fit: Usage
    ask: Usage
    cut: int = 0
    staged: bool = False
    probabilities: bool = False


def ask(
    prepared: Prepared,
    systems: Systems = DEFAULT,
    *,
    log_folder: Path | None = None,
    fits: SharedFits | None = None,
) -> tuple[list[Answers], tuple[str, ...]]:
    """Fit every system on every cut and ask it for lists under every protocol.

    Args:
        prepared: what is asked.
        systems: names, or objects by name.
        log_folder: for the logs of our trainings, a folder for each fit; not where the configuration names one.
        fits: earlier ones, whose stage 1 may be taken over.

    Returns:
        The answers, cuts outermost, systems in the order given; and sentences of the fits.

    Raises:
        InvalidConfig: a name is unknown.
    """
    named = dict(systems) if isinstance(systems, Mapping) else {name: name for name in systems}
    for name in named.values():
        if isinstance(name, str):
            check_name(name)
    answers: list[Answers] = []
    notes: list[str] = []
    fits = fits or SharedFits()
    for cut in prepared.cuts:
        # The others come first, so that their peak memory does not hold our models.
        others = {name: system for name, system in named.items() if not _is_ours(system)}
        found = []
        for name, system in tqdm(others.items(), desc="baselines", disable=not prepared.config.progress):
            answered, said = _ask_other(name, system, prepared, cut)
            found += answered
            notes += said
        whole: Ours | None = None
        for variant in VARIANTS:
            mine = {key: name for key, name in named.items() if isinstance(name, str) and variant_of(name) == variant}
            if mine:
                if variant == NO_INTEREST and whole is not None and not whole.reads_interest:
                    ours = whole
                    notes.append(f"{NO_INTEREST}: the same model as {TWO_STAGE}, which leaves the score out.")
                else:
                    logs = _log_folder(log_folder, prepared, cut, variant)
                    ours = fit_ours(prepared, cut, variant=variant, log_folder=logs, fits=fits)
                whole = ours if variant == TWO_STAGE else whole
                for key, name in mine.items():
                    asked = ask_ours(prepared, ours, cut, names=[name])
                    found += [replace(answer, system=key) for answer in asked]
                notes += _said(variant, ours.recommender.notes, notes)
        places = {name: place for place, name in enumerate(named)}
        answers += sorted(found, key=lambda answer: places[answer.system])
    answers, without = _of_every_cut(answers, prepared)
    silent = [name for name in named if name not in {answer.system for answer in answers} | set(without)]
    notes += [f"{name} has nothing to say about these data and is left out." for name in silent]
    notes += [f"{name} has no lists for some of the cuts and is left out there." for name in without]
    return answers, tuple(dict.fromkeys(notes))


def _of_every_cut(answers: list[Answers], prepared: Prepared) -> tuple[list[Answers], list[str]]:
    """The answers of systems that have some in every cut of a protocol, and who else there was."""
    cuts = Counter(protocol.name for cut in prepared.cuts for protocol in cut.protocols)
    had = Counter((answer.system, answer.protocol) for answer in answers)
    whole = [answer for answer in answers if had[answer.system, answer.protocol] == cuts[answer.protocol]]
    partly = {system: None for system, protocol in had if had[system, protocol] < cuts[protocol]}
    return whole, list(partly)


def _said(variant: str, sentences: Sequence[str], before: Sequence[str]) -> list[str]:
    """What a fit says; what a further fit says beyond that, under its name."""
    if variant == TWO_STAGE:
        return list(sentences)
    return [f"{variant}: {sentence}" for sentence in sentences if sentence not in before]


def check_name(name: str) -> None:
    """Refuse a name that no system has.

    Raises:
        InvalidConfig: it is unknown; the message lists what there is.
    """
    wrong_source = name.startswith(SOURCE) and name.removeprefix(SOURCE) not in SOURCES
    if (name not in BASELINES and variant_of(name) is None) or wrong_source:
        known = ", ".join(
            [
                *BASELINES,
                TWO_STAGE,
                RETRIEVAL,
                BI_ENCODER,
                f"{SOURCE}NAME (NAME one of {', '.join(SOURCES)})",
                NO_INTEREST,
                NO_TEXT,
            ]
        )
        raise InvalidConfig(f"system {name!r} is unknown; there are: {known}")


def variant_of(name: str) -> str | None:
    """Which fit of ours a name belongs to: `TWO_STAGE`, `NO_INTEREST`, `NO_TEXT`; None where it is not ours."""
    if name in (TWO_STAGE, RETRIEVAL, BI_ENCODER) or name.startswith(SOURCE):
        return TWO_STAGE
    return name if name in (NO_INTEREST, NO_TEXT) else None


def ask_baselines(prepared: Prepared) -> list[Answers]:
    """The default baselines' answers on the first cut."""
    names = [name for name in DEFAULT if name in BASELINES]
    return [answer for name in names for answer in _ask_other(name, name, prepared, prepared.cuts[0])[0]]


def fit_ours(
    prepared: Prepared,
    cut: Cut | None = None,
    *,
    variant: str = TWO_STAGE,
    log_folder: Path | None = None,
    fits: SharedFits | None = None,
) -> Ours:
    """Fit our recommender on train and the whole catalogue.

    Args:
        prepared: tables and configuration.
        cut: whose train; the first cut's by default.
        variant: "two-stage", "two-stage: no interest" (without cross-encoder) or "two-stage: no text".
        log_folder: for the logs of its trainings, where the configuration names none.
        fits: earlier ones, whose stage 1 may be taken over.
    """
    tables, train = prepared.tables, (cut or prepared.cuts[0]).split.train
    config: RecommenderConfig = prepared.config
    items = tables.items
    if variant == NO_INTEREST:
        config = replace(config, n_interest=0)
    if variant == NO_TEXT:
        config, items = replace(config, n_interest=0), without_text(items)
    if log_folder is not None and config.training.log_folder is None:
        config = replace(config, training=replace(config.training, log_folder=str(log_folder)))
    return (fits or SharedFits()).fit(train, items, config, tables.users)


def _log_folder(folder: Path | None, prepared: Prepared, cut: Cut, variant: str) -> Path | None:
    if folder is None:
        return None
    fit = "two-stage-no-text" if variant == NO_TEXT else "two-stage"
    return folder / fit if len(prepared.cuts) == 1 else folder / f"{fit}-cut-{cut.place}"


def without_text(items: pl.DataFrame) -> pl.DataFrame:
    """The catalogue with nothing to read; brands and categories stay as plain columns."""
    path = pl.col("categories").list.join(" > ").alias("category_path")
    renamed = {"brand": "brand_name"} if "brand" in items.columns else {}
    nothing = {"title": pl.lit(""), "description": pl.lit(""), "categories": pl.lit([], dtype=pl.List(pl.String))}
    return items.with_columns(path).rename(renamed).with_columns(**nothing)


def ask_ours(
    prepared: Prepared,
    ours: Ours,
    cut: Cut | None = None,
    *,
    names: Iterable[str] = (BI_ENCODER, RETRIEVAL, TWO_STAGE),
) -> list[Answers]:
    """Ask our recommender for lists under each protocol of a cut: those of stage 1, of a source, of both stages."""
    cut = cut or prepared.cuts[0]
    asked = [
        _ask_stages(protocol, prepared.depth, ours, cut.place, name) for protocol in cut.protocols for name in names
    ]
    return [answer for answer in asked if answer is not None]


def _is_ours(system: str | System) -> bool:
    return isinstance(system, str) and variant_of(system) is not None


def _ask_other(name: str, system: str | System, prepared: Prepared, cut: Cut) -> tuple[list[Answers], list[str]]:
    # Without the items that a user has had, buy-again is the same as popular.
    protocols = [asked for asked in cut.protocols if system != BUY_AGAIN or not asked.filter_seen]
    if not protocols:
        return [], []
    made: Any = BASELINES[system]() if isinstance(system, str) else system
    items = prepared.tables.items
    try:
        _, fit = metered(partial(made.fit, cut.split.train, items, as_of=cut.split.as_of))
    except learned.CatalogueTooLarge as error:
        return [], [f"{name} is left out: {error}"]
    answers, notes = [], []
    for protocol in protocols:
        try:
            found, usage = metered(partial(made.recommend, protocol.users, DEPTH, filter_seen=protocol.filter_seen))
        except UnknownUsers:
            notes.append(f"{name} has no lists for {len(protocol.users)} users of {protocol.name!r}.")
            continue
        found = _checked(found, name, protocol, items)
        answers.append(
            Answers(
                system=name,
                protocol=protocol.name,
                lists=found.filter(pl.col("rank") <= prepared.depth),
                candidates=found.filter(pl.col("rank") <= DEPTH),
                fit=fit,
                ask=usage,
                cut=cut.place,
                probabilities=bool(getattr(made, "probabilities", False)),
            )
        )
    return answers, notes


def _checked(found: pl.DataFrame, name: str, protocol: Asked, items: pl.DataFrame) -> pl.DataFrame:
    missing = [column for column in LIST_COLUMNS if column not in found.columns]
    if missing:
        raise InvalidData(
            table=f"lists of {name}",
            rule=f"the columns {', '.join(missing)} are missing",
            remedy="let recommend give user_id, item_id, rank and score",
        )
    ids: Any = {column: protocol.truth.schema[column] for column in ("user_id", "item_id")}
    lists = found.select(LIST_COLUMNS).cast({**ids, "rank": pl.Int32, "score": pl.Float64})
    refuse_foreign(lists, protocol.users, items["item_id"], table=f"lists of {name}")
    return lists


def refuse_foreign(lists: pl.DataFrame, users: pl.Series, items: pl.Series, *, table: str) -> None:
    """Refuse lists of people who were not asked about, or of items that are not there.

    Args:
        lists: `user_id` and `item_id`, typed as the following two.
        users: who was asked about.
        items: the catalogue.
        table: what the message calls the lists.

    Raises:
        InvalidData: which ids these are.
    """
    for column, known, rule in (
        ("user_id", users, "must be one that was asked about"),
        ("item_id", items, "must be in the catalogue"),
    ):
        foreign = lists[column].filter(~lists[column].is_in(known.implode()).fill_null(False))
        if len(foreign):
            raise InvalidData(
                table=table,
                column=column,
                rule=rule,
                count=len(foreign),
                rows=foreign.head(5).to_list(),
                remedy="answer for the users and items that were given",
            )


def _ask_stages(protocol: Asked, k: int, ours: Ours, cut: int, name: str) -> Answers | None:
    users, seen, recommender = protocol.users, protocol.filter_seen, ours.recommender
    sources = _sources(name)
    if sources is not None and not set(sources) <= set(recommender.sources):
        # The user's own items are a source only where repeats are common, new ones where these are, EASE where it fits.
        return None
    if sources is not None and protocol.name == COLD_USERS and sources not in (["popular"], ["recent"], ["trending"]):
        return None
    staged = name in (TWO_STAGE, NO_INTEREST, NO_TEXT)
    depth = max(DEPTH, recommender.config.retriever.n_candidates) if staged else DEPTH
    found, retrieving = metered(partial(recommender.retrieve, users, depth, filter_seen=seen, sources=sources))
    final, usage = found, retrieving
    if staged:
        final, usage = metered(partial(recommender.recommend, users, k, filter_seen=seen))
    typed = {"rank": pl.Int32, "score": pl.Float64}
    return Answers(
        system=name,
        protocol=protocol.name,
        lists=final.filter(pl.col("rank") <= k).select(LIST_COLUMNS).cast(typed),
        candidates=found.select(*LIST_COLUMNS, "source").cast(typed),
        fit=ours.fit,
        ask=usage,
        cut=cut,
        staged=staged,
    )


def _sources(name: str) -> list[str] | None:
    """Which sources stage 1 asks under a name; None for all."""
    if name == BI_ENCODER:
        return ["vector"]
    return [name.removeprefix(SOURCE)] if name.startswith(SOURCE) else None
