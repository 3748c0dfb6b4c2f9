"""Beyond accuracy: how new, how varied and how popular what is shown is, and whether scores are honest probabilities.

Pure functions of frames and arrays. Lists are read as in `recsys/metrics.py`: a user's distinct items by rank, equal
ranks by `item_id`. Every function but `gini` and `calibration` gives one value a user, in the order of `users`; NaN
where it says nothing about him.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from recsys.errors import InvalidData
from recsys.metrics import first_k
from recsys.probability_report import brier, reliability

FloatArray = npt.NDArray[np.float64]

TINY = 1e-15
N_BINS = 10


def popularity(train: pl.DataFrame) -> pl.DataFrame:
    """`item_id` and `n_users`: distinct users of each item that has any."""
    return train.group_by("item_id").agg(n_users=pl.col("user_id").n_unique()).sort("item_id")


def novelty(recommended: pl.DataFrame, train: pl.DataFrame, users: pl.Series, k: int) -> FloatArray:
    """Mean over the list of -log2 p(item), in bits; p = (users of the item + 1) / (users + 1).

    Source: Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender systems", where it
    is called self-information; the 1 keeps items without users finite.
    """
    n = train["user_id"].n_unique() + 1
    bits = -((pl.col("n_users").fill_null(0) + 1) / n).log(2)
    return _mean(first_k(recommended, k).join(popularity(train), on="item_id", how="left"), bits, users)


def popularity_lift(recommended: pl.DataFrame, train: pl.DataFrame, users: pl.Series, k: int) -> FloatArray:
    """Mean popularity of the list over that of the user's history, minus 1; NaN without history or without a list.

    Above 0 the list is more popular than what the user takes.
    Source: Abdollahpouri et al. 2019, "The unfairness of popularity bias in recommendation", group average popularity.
    """
    counts = popularity(train)
    history = train.join(users.unique().to_frame("user_id"), on="user_id", how="semi").unique(["user_id", "item_id"])
    before = history.join(counts, on="item_id").group_by("user_id").agg(before=pl.col("n_users").mean())
    lists = first_k(recommended, k).join(counts, on="item_id", how="left")
    shown = _mean(lists, pl.col("n_users").fill_null(0), users)
    taken = users.to_frame("user_id").join(before, on="user_id", how="left", maintain_order="left")["before"]
    return np.asarray(shown / taken.fill_null(np.nan).to_numpy() - 1, dtype=np.float64)


def serendipity(
    recommended: pl.DataFrame, truth: pl.DataFrame, train: pl.DataFrame, users: pl.Series, k: int
) -> FloatArray:
    """Hits in the first k that are not among the k most popular items of train, divided by k.

    Source: Ge, Delgado-Battenfeld and Jannach 2010, "Beyond accuracy: evaluating recommender systems by coverage and
    serendipity", with popularity as the primitive model.
    """
    expected = popularity(train).sort("n_users", "item_id", descending=[True, False]).head(k)
    hits = first_k(recommended, k).join(truth, on=["user_id", "item_id"], how="semi")
    surprising = hits.join(expected, on="item_id", how="anti").group_by("user_id").agg(n=pl.len())
    counted = users.to_frame("user_id").join(surprising, on="user_id", how="left", maintain_order="left")["n"]
    return np.asarray(counted.fill_null(0).to_numpy() / k, dtype=np.float64)


def intra_list_diversity(
    recommended: pl.DataFrame, item_ids: pl.Series, vectors: Any, users: pl.Series, k: int
) -> FloatArray:
    """Mean of 1 - cosine over all pairs of the list, in [0, 2]; NaN for lists of fewer than two items.

    Computed as (n^2 - |sum of unit vectors|^2 - (n - number of them)) / (n (n - 1)): the sum's square holds every pair.
    Source: Ziegler et al. 2005, "Improving recommendation lists through topic diversification", eq. 5, as a distance.

    Args:
        recommended: `user_id`, `item_id`, `rank`.
        item_ids: (n_items,), what the rows of `vectors` are.
        vectors: sparse or dense (n_items, dim), unit rows, or zero rows for items of which nothing is known.
        users: whose lists.
        k: length.
    """
    rows = pl.DataFrame({"item_id": item_ids}).with_row_index("item_row")
    owners = users.to_frame("user_id").with_row_index("user_row")
    lists = first_k(recommended, k).join(rows, on="item_id").join(owners, on="user_id")
    shape = (len(users), len(item_ids))
    user_row, item_row = lists["user_row"].to_numpy(), lists["item_row"].to_numpy()
    shown = sparse.csr_array((np.ones(len(user_row)), (user_row, item_row)), shape=shape)
    given = sparse.csr_array(vectors)
    squares = np.zeros(len(users))
    for start in range(0, len(users), 8192):
        total = shown[start : start + 8192] @ given
        squares[start : start + 8192] = np.asarray(total.multiply(total).sum(axis=1)).ravel()
    known = shown @ np.asarray(given.multiply(given).sum(axis=1)).ravel()
    n = np.bincount(user_row, minlength=len(users)).astype(np.float64)
    pairs = n * (n - 1)
    return np.asarray(1 - (squares - known) / np.where(pairs > 0, pairs, np.nan), dtype=np.float64)


def gini(recommended: pl.DataFrame, n_items: int, k: int) -> float:
    """Gini coefficient of how often each item of the catalogue is shown: 0 all equally often, near 1 always the same.

    Source: Fleder and Hosanagar 2009, "Blockbuster culture's next rise or fall". NaN where nothing is shown.
    """
    shown = first_k(recommended, k)["item_id"].value_counts()["count"].sort().to_numpy().astype(np.float64)
    if not len(shown):
        return float("nan")
    place = np.arange(n_items - len(shown) + 1, n_items + 1)  # the items never shown come first, with nothing
    return float(2 * (place * shown).sum() / (n_items * shown.sum()) - (n_items + 1) / n_items)


def calibration(probabilities: FloatArray, labels: FloatArray) -> dict[str, Any]:
    """How honest probabilities are.

    `ece` is the expected calibration error over bins of about equally many rows: the mean distance of mean probability
    and share of positives, weighted by rows (Source: Naeini, Cooper and Hauskrecht 2015, with equal-mass bins).
    `brier` is the mean squared distance (Source: Brier 1950), `log_loss` the mean negative log-likelihood in nats, with
    probabilities cut to [1e-15, 1 - 1e-15].

    Args:
        probabilities: (n,), in [0, 1].
        labels: (n,), 0 or 1.

    Returns:
        `n`, `base_rate`, `ece`, `brier`, `log_loss`, `reliability` [[mean probability, share, rows]].

    Raises:
        InvalidData: there is no row, or a value outside [0, 1].
    """
    if not len(probabilities) or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InvalidData(
            table="scores",
            rule="must be probabilities in [0, 1], at least one",
            remedy="do not set `probabilities` on a system whose scores are none",
        )
    weights = np.ones(len(labels))
    bins = reliability(labels, probabilities, weights, N_BINS)
    cut = np.clip(probabilities, TINY, 1 - TINY)
    return {
        "n": len(labels),
        "base_rate": float(labels.mean()),
        "ece": float(sum(n * abs(mean - share) for mean, share, n in bins) / len(labels)),
        "brier": brier(labels, probabilities, weights),
        "log_loss": float(-np.mean(labels * np.log(cut) + (1 - labels) * np.log(1 - cut))),
        "reliability": [list(entry) for entry in bins],
    }


def _mean(lists: pl.DataFrame, value: pl.Expr, users: pl.Series) -> FloatArray:
    """Mean of a value over each user's list; NaN without one."""
    means = lists.group_by("user_id").agg(value=value.mean())
    joined = users.to_frame("user_id").join(means, on="user_id", how="left", maintain_order="left")["value"]
    return np.asarray(joined.fill_null(np.nan).to_numpy(), dtype=np.float64)
