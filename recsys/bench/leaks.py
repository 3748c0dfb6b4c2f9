"""What is too good to be true: columns that know the future, and systems that find more than there is to know.

Owns the suspicions and their limits. They need the test rows, so nothing that is fitted may use them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import rankdata

from recsys.bench.protocols import Cut, Prepared
from recsys.bench.result import Flag, Table
from recsys.bench.systems import BASELINES, variant_of

FloatArray = npt.NDArray[np.float64]

KNOWS = 0.5  # partial rank correlation with future popularity, given all that the past says about it
KNOWS_COUNTS = 0.8  # the same of plain counts, where one item alone can make much of it
MIN_ITEMS = 40
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
    """Columns of the items, numbers or truth values, that know more of the test's popularity than the whole past does.

    Of every column, and of how many test rows each item has, that part is taken away which the item's rows in train
    explain (all of them, and the last tenth): by least squares, on ranks, on logarithms and on plain numbers. What is
    left of both must not go together, in neither half of the items. An honest column may say a little beyond the
    past, one that was counted afterwards says almost everything. Date columns are left to the fit.
    """
    items, config = prepared.tables.items, prepared.config
    known = items.select("item_id").join(_counts(cut), on="item_id", how="left").fill_null(0)
    if known.filter(pl.col("test") > 0).height < MIN_ITEMS:
        return []
    test = known["test"].to_numpy().astype(np.float64)
    past = [known[name].to_numpy().astype(np.float64) for name in ("train", "recent")]
    flags = []
    for name in items.columns:
        numeric = items.schema[name].is_numeric() or items.schema[name] == pl.Boolean
        if not numeric or name == "item_id" or name in config.ignore_columns:
            continue
        filled = items[name].cast(pl.Float64).fill_null(strategy="min").fill_nan(0.0).fill_null(0.0).to_numpy()
        found = knowledge(filled, test, past)
        if found is not None:
            flags.append(
                Flag(
                    kind="leak",
                    what=name,
                    message=(
                        f"The item column {name!r} knows the test: what it says beyond the past goes together with "
                        f"the popularity in the test (partial correlation {found:.2f}). Was it counted after the "
                        "cut? Name it in ignore_columns, or give its value as of the cut."
                    ),
                )
            )
    return flags


def knowledge(column: FloatArray, future: FloatArray, past: Sequence[FloatArray]) -> float | None:
    """The partial correlation of a column with the future given the past, where it is above the limits; else None.

    Args:
        column: (n_items,).
        future: (n_items,), how often each item is taken in the test.
        past: arrays (n_items,), what train says.
    """
    if np.ptp(column) == 0:
        return None
    logs = column - column.min()
    views = (
        (rankdata, KNOWS),
        (np.log1p, KNOWS),
        (np.asarray, KNOWS_COUNTS),
    )
    best = None
    for view, limit in views:
        x = view(logs if view is np.log1p else column)
        halves = [
            _partial(x[side::2], view(future)[side::2], [view(counts)[side::2] for counts in past]) for side in (0, 1)
        ]
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
            ceiling = row.ceiling or row.candidate_recall or 0.0
            reason = None
            if ndcg >= ALMOST_ALL and table.n_users >= MIN_ITEMS:
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
    return [Flag(kind="leak", what=note.split("'")[1].split("__")[-1], message=note) for note in found]


def _counts(cut: Cut) -> pl.DataFrame:
    """`item_id`, `train`, `recent` (the last tenth of train), `test`: rows of each item."""
    train, test = cut.split.train, cut.split.test
    recent = train.sort("timestamp").tail(max(1, train.height // 10))
    parts = {"train": train, "recent": recent, "test": test}
    frames = [rows.group_by("item_id").agg(pl.len().alias(name)) for name, rows in parts.items()]
    joined = frames[0].join(frames[1], on="item_id", how="full", coalesce=True)
    return joined.join(frames[2], on="item_id", how="full", coalesce=True).fill_null(0)


def _partial(x: FloatArray, y: FloatArray, given: Sequence[FloatArray]) -> float:
    """Correlation of what least squares on `given` leaves of both; 0 where nothing is left of one."""
    design = np.stack([np.ones(len(x)), *given], axis=1)
    left = [side - design @ np.linalg.lstsq(design, side, rcond=None)[0] for side in (x, y)]
    spread = [float(np.linalg.norm(side)) for side in left]
    whole = [float(np.linalg.norm(side - side.mean())) for side in (x, y)]
    if any(part <= 1e-6 * max(all_, 1e-12) for part, all_ in zip(spread, whole, strict=True)):
        return 0.0
    return float(abs(left[0] @ left[1] / (spread[0] * spread[1])))
