"""What is too good to be true: columns that know the future, and systems that find more than there is to know.

Owns the suspicions and their limits. They need the test rows, so nothing that is fitted may use them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import rankdata

from recsys.bench.groups import MAX_GROUPS
from recsys.bench.protocols import Cut, Prepared
from recsys.bench.result import CANDIDATE_RECALL, CEILING, Flag, Table
from recsys.bench.systems import BASELINES, variant_of

FloatArray = npt.NDArray[np.float64]

KNOWS = 0.5  # partial rank correlation with future popularity, given all that the past says about it
KNOWS_COUNTS = 0.8  # the same of plain counts, where one item alone can make much of it
FEWEST_TESTED = 40  # items, or users, that the test must have before a column of theirs is judged
CEILING_SHARE = 0.9
CEILING_FROM = 0.1
JUMP = 4.0
ALMOST_ALL = 0.95
TELLING = " alone tells what was taken"


def suspicions(prepared: Prepared, tables: Sequence[Table], notes: Sequence[str]) -> tuple[Flag, ...]:
    """Everything that makes the numbers suspicious: see the functions below."""
    flags = [flag for cut in prepared.cuts for flag in leaking_columns(prepared, cut)]
    once = {flag.what: flag for flag in flags}
    told = {flag.what: flag for flag in _told(notes)}
    return (*{**told, **once}.values(), *too_good(tables, prepared.k))


def leaking_columns(prepared: Prepared, cut: Cut) -> list[Flag]:
    """Columns of items and users that know more of the test than the whole past does.

    Of every column, and of how many test rows each item (or user) has, that part is taken away which its rows in train
    explain (all of them, and the last tenth): by least squares, on ranks, on logarithms and on plain numbers. What is
    left of both must not go together, in neither half of the table. An honest column may say a little beyond the
    past, one that was counted afterwards says almost everything. Looked at are numbers, also those written as text,
    truth values, and texts of at most `MAX_GROUPS` values. Date columns are left to the fit: a new item's date rightly
    tells that it is taken now. So may a season's name, where items live for a small part of the time.
    """
    tables = prepared.tables
    flags = _leaking(tables.items.drop(prepared.config.ignore_columns, strict=False), "item_id", cut)
    return flags if tables.users is None else [*flags, *_leaking(tables.users, "user_id", cut)]


def _leaking(table: pl.DataFrame, key: str, cut: Cut) -> list[Flag]:
    known = table.select(key).join(_counts(cut, key), on=key, how="left", maintain_order="left").fill_null(0)
    if known.filter(pl.col("test") > 0).height < FEWEST_TESTED:
        return []
    test, *past = (known[name].to_numpy().astype(np.float64) for name in ("test", "train", "recent"))
    owner, taken, remedy = (
        ("item", "popularity", "Name it in ignore_columns")
        if key == "item_id"
        else ("user", "activity", "Leave it out of the users table")  # ignore_columns speaks of items alone
    )
    flags = []
    for name in table.columns:
        if name == key:
            continue
        found = [knowledge(values, test, past) for values in (*_numbers(table[name]), *_groups(table[name]))]
        strongest = max((correlation for correlation in found if correlation is not None), default=None)
        if strongest is not None:
            message = (
                f"The {owner} column {name!r} knows the test: what it says beyond the past goes together with the "
                f"{taken} in the test (partial correlation {strongest:.2f}). Was it counted after the cut? {remedy}, "
                "or give its value as of the cut."
            )
            flags.append(Flag(kind="leak", what=name if owner == "item" else f"user: {name}", message=message))
    return flags


def _numbers(column: pl.Series) -> list[FloatArray]:
    """Numbers, truth values and written numbers, (n,), missing ones like the least; nothing of other kinds."""
    if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String)):
        return []
    numbers = column.cast(pl.Float64, strict=False)
    if numbers.null_count() > column.null_count():
        return []
    finite = numbers.to_frame("value").select(pl.when(pl.col("value").is_finite()).then(pl.col("value"))).to_series()
    return [finite.fill_null(strategy="min").fill_null(0.0).to_numpy()]


def _groups(column: pl.Series) -> list[FloatArray]:
    """Of a text of few values, 1 where it is each of them and else 0, (n,)."""
    values = column.drop_nulls().unique() if column.dtype == pl.String else pl.Series([])
    if len(values) > MAX_GROUPS:
        return []
    return [(column == value).fill_null(False).to_numpy().astype(np.float64) for value in values]


def knowledge(column: FloatArray, future: FloatArray, past: Sequence[FloatArray]) -> float | None:
    """The partial correlation of a column with the future given the past, where it is above the limits; else None.

    Args:
        column: (n,), of the items or users.
        future: (n,), how many test rows each has.
        past: arrays (n,), what train says.
    """
    if np.ptp(column) == 0:
        return None
    views = ((rankdata, KNOWS), (_logarithms, KNOWS), (np.asarray, KNOWS_COUNTS))
    best = None
    for view, limit in views:
        x, y, given = view(column), view(future), [view(counts) for counts in past]
        halves = [_partial(x[side::2], y[side::2], [counts[side::2] for counts in given]) for side in (0, 1)]
        weaker = min(halves)
        if weaker >= limit and (best is None or weaker > best):
            best = weaker
    return best


def too_good(tables: Sequence[Table], k: int) -> list[Flag]:
    """Systems that leave nothing to be found, or are far above every simple system.

    Flagged are a mean ndcg of at least `ALMOST_ALL`; a ranker that puts at least `CEILING_SHARE` of what its
    candidates hold into the first k although they hold more than `CEILING_FROM`, and is `JUMP` times the best
    baseline as well.
    """
    flags = []
    for table in tables:
        metric = f"ndcg@{k}"
        simple = [row.metrics[metric].mean or 0.0 for row in table.rows if row.system in BASELINES]
        best = max(simple, default=None)
        for row in table.rows:
            ndcg, recall = (row.metrics[name].mean or 0.0 for name in (metric, f"recall@{k}"))
            ceiling = row.metrics[CEILING].mean or row.metrics[CANDIDATE_RECALL].mean or 0.0
            reason = None
            if ndcg >= ALMOST_ALL and table.n_users >= FEWEST_TESTED:
                reason = f"{metric} is {ndcg:.3f}, almost the best possible"
            elif (
                variant_of(row.system) is not None
                and best is not None
                and ndcg > JUMP * best > 0
                and ceiling >= CEILING_FROM
                and recall >= CEILING_SHARE * ceiling
            ):
                reason = (
                    f"{metric} is {ndcg:.3f}, {ndcg / best:.1f} times the best baseline's, and the first {k} hold "
                    f"{recall / ceiling:.0%} of all that its candidates hold"
                )
            if reason:
                flags.append(
                    Flag(
                        kind="too good to be true",
                        what=row.system,
                        message=f"{row.system} under {table.protocol!r}: {reason}. Look for a column that knows the "
                        "future, or for test rows in train.",
                    )
                )
    return flags


def _told(notes: Sequence[str]) -> list[Flag]:
    """What the fit itself found: columns that alone tell the labels."""
    found = [note for note in notes if TELLING in note]
    names = [note.split("'")[1].replace("user__", "user: ").split("__")[-1] for note in found]
    return [Flag(kind="leak", what=name, message=note) for name, note in zip(names, found, strict=True)]


def _counts(cut: Cut, key: str) -> pl.DataFrame:
    """The key, `train`, `recent` (the last tenth of train), `test`: rows of each item or user."""
    train, test = cut.split.train, cut.split.test
    recent = train.sort("timestamp").tail(max(1, train.height // 10))
    parts = {"train": train, "recent": recent, "test": test}
    frames = [rows.group_by(key).agg(pl.len().alias(name)) for name, rows in parts.items()]
    joined = frames[0].join(frames[1], on=key, how="full", coalesce=True)
    return joined.join(frames[2], on=key, how="full", coalesce=True).fill_null(0)


def _logarithms(values: FloatArray) -> FloatArray:
    return np.asarray(np.log1p(values - values.min()))


def _partial(x: FloatArray, y: FloatArray, given: Sequence[FloatArray]) -> float:
    """Correlation of what least squares on `given` leaves of both; 0 where nothing is left of one."""
    design = np.stack([np.ones(len(x)), *given], axis=1)
    left = [side - design @ np.linalg.lstsq(design, side, rcond=None)[0] for side in (x, y)]
    spread = [float(np.linalg.norm(side)) for side in left]
    # What least squares explain, and what does not vary at all, leaves rounding errors.
    whole = [float(np.linalg.norm(side - side.mean())) for side in (x, y)]
    sizes = [float(np.linalg.norm(side)) for side in (x, y)]
    if any(part <= 1e-6 * max(varies, 1e-6 * size) for part, varies, size in zip(spread, whole, sizes, strict=True)):
        return 0.0
    return float(abs(left[0] @ left[1] / (spread[0] * spread[1])))
