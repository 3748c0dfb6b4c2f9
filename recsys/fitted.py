"""What a fit leaves behind, in memory and on disk.

Owns which files hold which part. That the files are whole and unchanged is `recsys/bundle.py`'s business: it checks
every one of them before anything here reads it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from indexing.encoder import BiEncoder
from indexing.history import HistoryEncoder
from indexing.index import load_index
from indexing.item_tower import ItemTower
from indexing.rescored import SHORTENING
from indexing.sparse import load_csr, save_csr
from indexing.words import Words
from ranking.interest import InterestModel
from ranking.ranker import Ranker
from recsys.catalogue import Catalogue, user_numbers, user_values
from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import BundleCorrupt, BundleIncompatible, InvalidConfig
from recsys.prediction import Probabilities
from recsys.snapshot import Snapshot, Timelines, take_snapshot
from recsys.towers import Towers

STATE = "state.json"
HEADS = "probabilities"
BEHAVIOUR = ("covisitation", "ease")
VECTORS = ("text_vectors", "item_vectors", "searchable")


@dataclass(frozen=True)
class Fitted:
    """Everything that `recommend` needs.

    Attributes:
        catalogue: the items.
        events: `user_id`, `item_row`, `seconds`, `event_row`, `weight` of all interactions, in order of time.
        users: canonical users table, or None.
        user_values: values of its text columns that the models know, by column, in order.
        towers: stage 1's models.
        interest: the cross-encoder, None where there was too little to learn from or it is switched off.
        ranker: LightGBM, None where there was too little to learn from or the blend of stage 1 did better.
        new_ranker: the same for lists without what a user has taken; only where such items are shown by default.
        probabilities: heads of `predict_proba`, None where they are switched off.
        snapshot: sources and statistics as of `as_of`.
        window_kind: "time" or "last".
        as_of: Unix seconds, later than every event.
        hide_seen: what `filter_seen="auto"` means here.
        news: whether items that nobody took yet are a source.
        weights: of the sources in the blend.
        notes: what was decided and why, as sentences.
    """

    catalogue: Catalogue
    events: pl.DataFrame
    users: pl.DataFrame | None
    user_values: Mapping[str, Sequence[str]]
    towers: Towers
    interest: InterestModel | None
    ranker: Ranker | None
    new_ranker: Ranker | None
    probabilities: Probabilities | None
    snapshot: Snapshot
    window_kind: str
    as_of: float
    hide_seen: bool
    news: bool
    weights: Mapping[str, float]
    notes: tuple[str, ...]

    @cached_property
    def timelines(self) -> Timelines:
        """The events by user, put in order when the first request comes."""
        return Timelines.of(self.events)

    @cached_property
    def user_numbers(self) -> pl.DataFrame | None:
        """Numeric columns of the users table."""
        return user_numbers(self.users, self.user_values)

    def ranker_for(self, *, hide_seen: bool) -> Ranker | None:
        """The ranker that learnt from lists like those asked for."""
        return self.new_ranker if hide_seen and not self.hide_seen else self.ranker

    def renewed(self, config: RecommenderConfig, behaviour: Mapping[str, sp.csr_matrix] | None) -> "Fitted":
        """With sources and statistics of what it knows now, made as the fit decided.

        Args:
            config: of the fit.
            behaviour: neighbours learnt from the same events; None counts them anew.
        """
        snapshot = take_snapshot(
            self.events, self.as_of, self.towers, self.catalogue, config, repeats=not self.hide_seen, news=self.news,
            with_ease="ease" in self.snapshot.behaviour, clock=self.window_kind == "last", weights=self.weights,
            known_behaviour=behaviour,
        )  # fmt: skip
        return replace(self, snapshot=snapshot)


def write_fitted(fitted: Fitted, config: RecommenderConfig, folder: Path) -> dict[str, Any]:
    """Write every part into `folder` and return what the manifest should say about them."""
    fitted.catalogue.items.write_parquet(folder / "items.parquet")
    fitted.events.write_parquet(folder / "histories.parquet")
    if fitted.users is not None:
        fitted.users.write_parquet(folder / "users.parquet")
    towers = fitted.towers
    for name in VECTORS:
        np.save(folder / f"{name}.npy", getattr(towers, name), allow_pickle=False)
    save_csr(towers.text_neighbours, folder / "text_neighbours.safetensors")
    for name, matrix in fitted.snapshot.behaviour.items():
        save_csr(matrix, folder / f"{name}.safetensors")
    for name, part in _parts(fitted).items():
        if part is not None:
            (folder / name).mkdir()
            part.save(folder / name)
    state = {
        "window_kind": fitted.window_kind,
        "as_of": fitted.as_of,
        "hide_seen": fitted.hide_seen,
        "news": fitted.news,
        "weights": dict(fitted.weights),
        "group_columns": list(fitted.catalogue.group_columns),
        "user_values": {name: list(values) for name, values in fitted.user_values.items()},
        "event_kinds": list(towers.event_kinds),
        "tower_steps": towers.steps,
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
    """The small facts of a fit, its configuration among them.

    Raises:
        BundleCorrupt: there are none, so no recommender was saved there.
        BundleIncompatible: the configuration has a setting, or a value of one, that this version does not know.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleCorrupt(f"{folder} holds no {STATE}, so it is no saved recommender.") from error
    remedy = "Fit again, or load it with the version of recsys-twostage that its MANIFEST.json names."
    try:
        config = config_from_dict(state["config"])
    except InvalidConfig as error:
        raise BundleIncompatible(
            f"{folder} was saved with settings that this version does not read ({error}). {remedy}"
        ) from error
    short = (config.index.search_dim or config.item_tower.dim) < config.item_tower.dim
    if short and not (folder / "index" / SHORTENING).is_file():
        raise BundleIncompatible(f"{folder} searches in fewer dimensions as this version does not. {remedy}")
    return state


def read_fitted(folder: Path, state: dict[str, Any], config: RecommenderConfig, device: str) -> Fitted:
    """Read what `write_fitted` wrote; the sources are made from the stored interactions when they are first asked."""
    # Fits of earlier versions did not say which text columns they had read.
    items, groups = pl.read_parquet(folder / "items.parquet"), state.get("group_columns")
    catalogue = Catalogue.of(items, ignore_columns=config.ignore_columns, group_columns=groups)
    events = pl.read_parquet(folder / "histories.parquet")
    users = pl.read_parquet(folder / "users.parquet") if (folder / "users.parquet").exists() else None
    towers = Towers(
        encoder=BiEncoder.load(folder / "encoder", device=device),
        words=Words.load(folder / "words"),
        item_tower=ItemTower.load(folder / "item_tower", device=device),
        history_encoder=HistoryEncoder.load(folder / "history", device=device),
        event_kinds=tuple(state["event_kinds"]),
        index=load_index(folder / "index", device=device),
        text_neighbours=load_csr(folder / "text_neighbours.safetensors"),
        steps=state["tower_steps"],
        **{name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in VECTORS},
    )
    ranker, new_ranker = (
        Ranker.load(folder / name, config.ranker, seed=config.seed) if (folder / name).exists() else None
        for name in ("ranker", "new_ranker")
    )
    has_heads = (folder / HEADS).exists()
    facts = {name: state[name] for name in ("window_kind", "as_of", "hide_seen", "weights")}
    facts["news"] = state.get("news", False)  # fits of earlier versions have no such source
    snapshot = Snapshot(
        events=events, moment=facts["as_of"], towers=towers, catalogue=catalogue, config=config,
        behaviour={path.stem: load_csr(path) for path in _behaviour_files(folder)},
        repeats=not facts["hide_seen"], news=facts["news"], clock=facts["window_kind"] == "last",
        weights=facts["weights"],
    )  # fmt: skip
    return Fitted(
        catalogue=catalogue,
        events=events,
        users=users,
        user_values=state.get("user_values", user_values(users)),
        towers=towers,
        interest=InterestModel.load(folder / "interest", device=device) if (folder / "interest").exists() else None,
        snapshot=snapshot,
        notes=tuple(state["notes"]),
        ranker=ranker,
        new_ranker=new_ranker,
        probabilities=Probabilities.load(folder / HEADS, config.heads, seed=config.seed) if has_heads else None,
        **facts,
    )


def _behaviour_files(folder: Path) -> list[Path]:
    """Where `write_fitted` put the neighbours learnt from behaviour; one that was left out has no file."""
    return [path for name in BEHAVIOUR if (path := folder / f"{name}.safetensors").exists()]


def _parts(fitted: Fitted) -> dict[str, Any]:
    return {
        "encoder": fitted.towers.encoder,
        "words": fitted.towers.words,
        "item_tower": fitted.towers.item_tower,
        "history": fitted.towers.history_encoder,
        "index": fitted.towers.index,
        "interest": fitted.interest,
        HEADS: fitted.probabilities,
        "ranker": fitted.ranker,
        "new_ranker": fitted.new_ranker,
    }
