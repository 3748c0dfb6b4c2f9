"""Why an item: the nearest of what a user took, by text and by behaviour, and what weighed most with the ranker.

Owns the reasons as data and as sentences from fixed templates. Lists themselves are `recsys/lists.py`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.ranker import Ranker
from ranking.rerank import top_k
from recsys.candidates import to_frame
from recsys.config import RecommenderConfig
from recsys.errors import InvalidConfig
from recsys.fitted import Fitted
from recsys.lists import scored_candidates
from recsys.snapshot import People

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Near = list[tuple[int, float]]  # rows of the history and how near they are, nearest first

NEWEST = 200  # distinct items of a history that are looked at
N_NEAREST = 3
N_CONTRIBUTIONS = 5
LIKE = 0.5  # cosine from which on a sentence calls two texts alike
POPULAR = ("popular_rank", "recent_rank", "trending_rank")

TEMPLATES = {
    "en": {
        "again": "you have taken it before",
        "behaviour": "people who took “{}” also took it",
        "text": "it is like “{}”",
        "popular": "it is popular now",
        "whole": "it fits your history as a whole",
        "nothing": "nothing that you took is close to it",
        "separator": "; ",
        "sentence": "“{}”: {}.",
    },
    "zh": {
        "again": "您曾经取过它",
        "behaviour": "取过“{}”的人也取了它",
        "text": "它与“{}”相似",
        "popular": "它近期很热门",
        "whole": "它符合您的整体历史",
        "nothing": "您取过的物品中没有与它相近的",
        "separator": "；",
        "sentence": "“{}”：{}。",
    },
}


def check_language(language: str) -> None:
    """Refuse a language without templates.

    Raises:
        InvalidConfig: there are none.
    """
    if language not in TEMPLATES:
        raise InvalidConfig(f"language={language!r} must be one of {', '.join(map(repr, TEMPLATES))}")


def explain_items(
    state: Fitted,
    people: People,
    asked: Rows | None,
    k: int,
    config: RecommenderConfig,
    *,
    hide_seen: bool,
    language: str,
) -> pl.DataFrame:
    """Reasons for the items asked for, or for the user's list.

    Args:
        state: the fit.
        people: one user.
        asked: item rows, int64 (n,), distinct; None for his list.
        k: length of that list.
        config: of the recommender.
        hide_seen: whether what he has taken is hidden from his list.
        language: a key of `TEMPLATES`.

    Returns:
        What `Recommender.explain` promises, in the order asked for, or that of the list.
    """
    blocked = ~state.catalogue.available
    frame = to_frame(scored_candidates(state, people, k, config, blocked=blocked, hide_seen=hide_seen))
    ranked = top_k(frame, max(frame.height, 1))
    rows = ranked["item_row"].head(k).to_numpy().astype(np.int64) if asked is None else asked
    wanted = pl.DataFrame({"item_row": rows.astype(np.int32)})
    candidates = wanted.join(ranked, on="item_row", how="left", maintain_order="left")
    history = people.histories.of(0)[::-1].astype(np.int64)
    newest = np.array(list(dict.fromkeys(history.tolist()))[:NEWEST], dtype=np.int64)
    by_text = _nearest(_text_likeness(state, rows, newest, config), rows, newest)
    by_behaviour = _nearest(_behaviour(state, rows, newest), rows, newest)
    ranker = state.ranker_for(hide_seen=hide_seen) if len(newest) else None
    ids = state.catalogue.items["item_id"]
    return pl.DataFrame(
        {
            "item_id": ids.gather(rows),
            "rank": candidates["rank"],
            "because_text": _near_items(by_text, ids, "similarity"),
            "because_behaviour": _near_items(by_behaviour, ids, "weight"),
            "contributions": _contributions(ranker, candidates),
            "sentence": pl.Series(
                _sentences(state, rows, history, candidates, by_text, by_behaviour, language), dtype=pl.String
            ),
        }
    )


def _text_likeness(state: Fitted, rows: Rows, history: Rows, config: RecommenderConfig) -> Scores:
    """Cosines of text vectors, (n_rows, n_history); zero for items without text and where the encoder cannot read."""
    catalogue, towers = state.catalogue, state.towers
    texts = [catalogue.text_of(row) for row in (*rows, *history)]
    if towers.encoder.unknown_share(texts) > config.unknown_token_limit:
        return np.zeros((len(rows), len(history)), dtype=np.float32)
    vectors, has_text = towers.text_vectors, catalogue.has_text
    cosines = vectors[catalogue.text_rows[rows]] @ vectors[catalogue.text_rows[history]].T
    return np.asarray(cosines * np.outer(has_text[rows], has_text[history]), dtype=np.float32)


def _behaviour(state: Fitted, rows: Rows, history: Rows) -> Scores:
    """How often an item is taken soon after one of the history, as weights, (n_rows, n_history)."""
    neighbours = state.snapshot.behaviour.get("covisitation")
    if neighbours is None:
        return np.zeros((len(rows), len(history)), dtype=np.float32)
    return np.asarray(neighbours[history][:, rows].toarray().T, dtype=np.float32)


def _nearest(likeness: Scores, rows: Rows, history: Rows) -> list[Near]:
    """For each item the `N_NEAREST` others of the history above zero, of equal ones the newest first."""
    likeness = np.where(rows[:, None] == history[None, :], np.float32(0.0), likeness)
    best = np.argsort(-likeness, axis=1, kind="stable")[:, :N_NEAREST]
    return [
        [(int(history[place]), float(mine[place])) for place in places if mine[place] > 0.0]
        for mine, places in zip(likeness, best, strict=True)
    ]


def _near_items(near: Sequence[Near], ids: pl.Series, name: str) -> pl.Series:
    """List of struct(item_id, `name`), one a row."""
    dtype = pl.List(pl.Struct({"item_id": ids.dtype, name: pl.Float32}))
    return pl.Series([[{"item_id": ids[row], name: value} for row, value in mine] for mine in near], dtype=dtype)


def _contributions(ranker: Ranker | None, candidates: pl.DataFrame) -> pl.Series:
    """The largest contributions of each row to its score: null for no candidate, empty where no ranker was asked."""
    dtype = pl.List(pl.Struct({"feature": pl.String, "value": pl.Float64, "contribution": pl.Float64}))
    found = candidates["rank"].is_not_null().to_list()
    if ranker is None:
        return pl.Series([[] if there else None for there in found], dtype=dtype)
    values = candidates.select(pl.col(ranker.features).cast(pl.Float64)).rows()
    parts = ranker.contributions(candidates)[:, :-1]  # the last one is the bias
    largest = np.argsort(-np.abs(parts), axis=1, kind="stable")[:, :N_CONTRIBUTIONS]
    listed = [
        [{"feature": ranker.features[f], "value": mine[f], "contribution": float(part[f])} for f in places]
        for mine, part, places in zip(values, parts, largest, strict=True)
    ]
    return pl.Series([mine if there else None for mine, there in zip(listed, found, strict=True)], dtype=dtype)


def _sentences(
    state: Fitted,
    rows: Rows,
    history: Rows,
    candidates: pl.DataFrame,
    by_text: Sequence[Near],
    by_behaviour: Sequence[Near],
    language: str,
) -> list[str]:
    """One sentence an item, from what is known about it."""
    words, titles, ids = TEMPLATES[language], state.catalogue.items["title"], state.catalogue.items["item_id"]
    popular = [name for name in POPULAR if name in candidates.columns]
    is_popular = candidates.select(pl.any_horizontal(pl.lit(value=False), pl.col(popular).is_not_null())).to_series()

    def name_of(row: int) -> str:
        return titles[row] or str(ids[row])

    sentences = []
    for place, row in enumerate(rows.tolist()):
        clauses = [words["again"]] if row in history else []
        clauses += [words["behaviour"].format(name_of(near)) for near, _ in by_behaviour[place][:1]]
        clauses += [words["text"].format(name_of(near)) for near, cosine in by_text[place][:1] if cosine >= LIKE]
        if not clauses:
            is_candidate = candidates["rank"][place] is not None
            other = "popular" if is_popular[place] else "whole" if is_candidate else "nothing"
            clauses = [words[other]]
        sentences.append(words["sentence"].format(name_of(row), words["separator"].join(clauses)))
    return sentences
