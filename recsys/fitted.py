"""What a fit leaves behind, in memory and on disk.

Owns which files hold which part. That the files are whole and unchanged is `recsys/bundle.py`'s business: it checks
every one of them before anything here reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from indexing.encoder import BiEncoder
from indexing.history import HistoryEncoder
from indexing.index import load_index
from indexing.sparse import load_csr, save_csr
from ranking.interest import InterestModel
from ranking.ranker import Ranker
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.snapshot import Snapshot, Towers, take_snapshot

STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Fitted:
    """Everything that `recommend` needs.

    Attributes:
        catalogue: the items.
        events: `user_id`, `item_row`, `seconds` of all interactions, in order of time.
        users: canonical users table, or None.
        towers: stage 1's models.
        interest: the cross-encoder, None where there was too little to learn from or it is switched off.
        ranker: LightGBM, None where there was too little to learn from or the blend of stage 1 did better.
        snapshot: sources and statistics as of `as_of`.
        window_kind: "time" or "last".
        as_of: Unix seconds, later than every event.
        hide_seen: what `filter_seen="auto"` means here.
        weights: of the sources in the blend.
        notes: what was decided and why, as sentences.
    """

    catalogue: Catalogue
    events: pl.DataFrame
    users: pl.DataFrame | None
    towers: Towers
    interest: InterestModel | None
    ranker: Ranker | None
    snapshot: Snapshot
    window_kind: str
    as_of: float
    hide_seen: bool
    weights: Mapping[str, float]
    notes: tuple[str, ...]


def write_fitted(fitted: Fitted, config: RecommenderConfig, folder: Path) -> dict[str, Any]:
    """Write every part into `folder` and return what the manifest should say about them."""
    fitted.catalogue.items.write_parquet(folder / "items.parquet")
    fitted.events.write_parquet(folder / "histories.parquet")
    if fitted.users is not None:
        fitted.users.write_parquet(folder / "users.parquet")
    towers = fitted.towers
    np.save(folder / "vectors.npy", towers.item_vectors, allow_pickle=False)
    save_csr(towers.text_neighbours, folder / "text_neighbours.safetensors")
    save_csr(fitted.snapshot.covisitation, folder / "covisitation.safetensors")
    for name, part in _parts(fitted).items():
        if part is not None:
            (folder / name).mkdir()
            part.save(folder / name)
    state = {
        "window_kind": fitted.window_kind,
        "as_of": fitted.as_of,
        "hide_seen": fitted.hide_seen,
        "weights": dict(fitted.weights),
        "notes": list(fitted.notes),
        "config": asdict(config),
    }
    (folder / STATE).write_text(json.dumps(state, indent=2, ensure_ascii=False), encoding="utf-8")
    return {
        "as_of": fitted.as_of,
        "encoder": towers.encoder.fingerprint(),
        "items": len(fitted.catalogue),
        "interactions": fitted.events.height,
    }


def read_state(folder: Path) -> dict[str, Any]:
    """The small facts of a fit, its configuration among them."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def read_fitted(folder: Path, state: dict[str, Any], config: RecommenderConfig, device: str) -> Fitted:
    """Read what `write_fitted` wrote; the sources are built anew from the stored interactions."""
    catalogue = Catalogue.of(pl.read_parquet(folder / "items.parquet"), ignore_columns=config.ignore_columns)
    events = pl.read_parquet(folder / "histories.parquet")
    users = pl.read_parquet(folder / "users.parquet") if (folder / "users.parquet").exists() else None
    towers = Towers(
        BiEncoder.load(folder / "encoder", device=device),
        HistoryEncoder.load(folder / "history", device=device),
        np.load(folder / "vectors.npy", allow_pickle=False),
        load_index(folder / "index", device=device),
        load_csr(folder / "text_neighbours.safetensors"),
    )
    has_interest, has_ranker = (folder / "interest").exists(), (folder / "ranker").exists()
    facts = {name: state[name] for name in ("window_kind", "as_of", "hide_seen", "weights")}
    snapshot = take_snapshot(
        events,
        facts["as_of"],
        towers,
        catalogue,
        config,
        repeats=not facts["hide_seen"],
        weights=facts["weights"],
        known_covisitation=load_csr(folder / "covisitation.safetensors"),
    )
    return Fitted(
        catalogue=catalogue,
        events=events,
        users=users,
        towers=towers,
        interest=InterestModel.load(folder / "interest", device=device) if has_interest else None,
        ranker=Ranker.load(folder / "ranker", config.ranker, seed=config.seed) if has_ranker else None,
        snapshot=snapshot,
        notes=tuple(state["notes"]),
        **facts,
    )


def _parts(fitted: Fitted) -> dict[str, Any]:
    return {
        "encoder": fitted.towers.encoder,
        "history": fitted.towers.history_encoder,
        "index": fitted.towers.index,
        "interest": fitted.interest,
        "ranker": fitted.ranker,
    }
