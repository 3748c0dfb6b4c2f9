"""ndcg, recall, map and mrr equal ranx on 1,000 random cases with ties, duplicates and empty truths."""

import numpy as np
import polars as pl
import pytest

from recsys import metrics
from recsys.bench.measure import ACCURACY

N_CASES = 1000
K = 10


def cases() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Each user is a case: 0 to 25 rows with tied ranks and items given twice; 0 to 8 pairs to be found, some twice."""
    rng = np.random.default_rng(7)
    lists, truth = [], []
    for case in range(N_CASES):
        user, n_items = f"u{case:04}", int(rng.integers(3, 30))
        for _ in range(rng.integers(0, 26)):
            lists.append((user, f"i{rng.integers(n_items):02}", int(rng.integers(1, 16))))
        for _ in range(rng.integers(0, 9)):
            truth.append((user, f"i{rng.integers(n_items + 3):02}"))
    return (
        pl.DataFrame(lists, schema=["user_id", "item_id", "rank"], orient="row"),
        pl.DataFrame(truth, schema=["user_id", "item_id"], orient="row"),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ndcg", "recall", "precision", "hitrate", "map", "mrr"])
def test_equals_ranx(name):
    ranx = pytest.importorskip("ranx")
    recommended, truth = cases()
    hits = metrics.hit_matrix(recommended, truth, K)
    assert 800 < len(hits.users) < N_CASES  # the others have nothing to be found
    # ranx knows neither ties nor repeated items: it is given what our reading of a list makes of them.
    run: dict[str, dict[str, float]] = {user: {"nothing": -1000.0} for user in hits.users}
    for user, rank, item in sorted(recommended.select("user_id", "rank", "item_id").iter_rows()):
        if user in run and item not in run[user]:
            run[user][item] = -float(len(run[user]))
            assert rank > 0
    qrels = {user: dict.fromkeys(truth.filter(user_id=user)["item_id"], 1) for user in hits.users}
    word = {"hitrate": "hit_rate"}.get(name, name)
    ranx.evaluate(ranx.Qrels(qrels), found := ranx.Run(run), f"{word}@{K}")
    theirs = [found.scores[f"{word}@{K}"][user] for user in hits.users]
    np.testing.assert_allclose(ACCURACY[name](hits, K), theirs, rtol=0, atol=1e-9)
