"""A fit brought up to date without training: fresh tables in, the same models as of a later moment out.

Owns what is carried over, encoded, dropped and counted anew. Does not own storing (`store.py`), judging (`gates.py`) or
reading tables (`recsys/schema.py`). Encoder, towers' weights, interest model, ranker, heads and blend stay as learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch

from indexing.embedding_cache import EmbeddingCache
from indexing.index import are_unit
from indexing.item_tower import ItemFeatures, ItemTower
from indexing.lexical import renewed_neighbours, text_neighbours
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.errors import BundleCorrupt, InvalidData, PublishRefused
from recsys.events import strange_kinds, to_events
from recsys.fitted import Fitted
from recsys.rebuild.features import check_refreshed
from recsys.schema import Tables
from recsys.snapshot import places_of
from recsys.splits import end_of
from recsys.towers import Towers, configured_index, histories_of, item_space, likely_queries

NOTE = "rebuild: "
MANY_TEXTS = 5_000  # fewer are compared anew in a second
FEW_CHANGED = 0.1  # of the texts: more are compared anew in about the same time
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a refresh did.

    Attributes:
        items: in the catalogue now.
        added: items that are new.
        dropped: items that are gone.
        texts: distinct texts now.
        kept: of them, those whose vector was carried over.
        encoded: of them, those that the encoder read.
        users: people with history.
        forgotten: people whom the parent knew and the tables do not name.
        interactions: rows.
        late: interactions at or after `as_of`, which were left out.
    """

    items: int
    added: int
    dropped: int
    texts: int
    kept: int
    encoded: int
    users: int
    forgotten: int
    interactions: int
    late: int


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The fit as of the new moment, and what was done for it."""

    fitted: Fitted
    counts: Counts


def refresh(
    parent: Fitted,
    tables: Tables,
    config: RecommenderConfig,
    *,
    device: str,
    as_of: datetime | None = None,
    cache: EmbeddingCache | None = None,
    compared: Fitted | None = None,
) -> Refreshed:
    """Carry a fit over to fresh tables.

    Args:
        parent: the fit whose models stay; it is not changed.
        tables: validated; everything that shall be known, not what is new alone.
        config: of the parent.
        device: resolved.
        as_of: exclusive end of what is known, in UTC; by default one second after the last interaction.
        cache: of the parent's encoder; an interrupted run finds there what it has encoded.
        compared: the same parent refreshed with the same items: what it knows of their texts is taken from it.

    Raises:
        InvalidData: a table lacks what the models were fitted with, or nothing lies before `as_of`.
        BundleCorrupt: the cache is damaged, or the parent lacks what its models read.
    """
    check_tables(parent, tables)
    interactions, late, moment = _before(tables.interactions, as_of)
    known = parent.catalogue.group_columns
    catalogue = Catalogue.of(tables.items, ignore_columns=config.ignore_columns, group_columns=known)
    read = parent if compared is None else compared
    text_vectors, encoded = carried_vectors(read, catalogue.texts, cache, progress=config.progress)
    events = to_events(interactions, catalogue, parent.towers.event_kinds)
    towers = replace(
        _carried(parent, catalogue, text_vectors, events, config, device),
        text_neighbours=_text_neighbours(read, catalogue, config),
    )
    old = parent.catalogue
    added = int((old.rows_of(tables.items["item_id"]) < 0).sum())
    counts = Counts(
        items=len(catalogue), added=added, dropped=len(old) - (len(catalogue) - added),
        texts=len(catalogue.texts), kept=len(catalogue.texts) - encoded, encoded=encoded,
        users=events["user_id"].n_unique(), forgotten=_forgotten(parent, events, tables.users),
        interactions=events.height, late=late,
    )  # fmt: skip
    strange = strange_kinds(interactions, parent.towers.event_kinds)
    changed = replace(
        parent, catalogue=catalogue, events=events, users=tables.users, towers=towers,
        as_of=moment.timestamp(), notes=_notes(parent.notes, moment, strange),
    )  # fmt: skip
    fitted = changed.renewed(config, _known_behaviour(parent, catalogue, events))
    check_refreshed(fitted, parent, config)
    return Refreshed(fitted, counts)


def _forgotten(parent: Fitted, events: pl.DataFrame, users: pl.DataFrame | None) -> int:
    """How many people the parent knew, by history or attributes, of whom nothing is left."""
    before, now = (
        pl.concat([table["user_id"] for table in tables if table is not None]).unique()
        for tables in ((parent.events, parent.users), (events, users))
    )
    return int((~before.is_in(now.implode())).sum())


def check_parts(fitted: Fitted, encoder: object) -> None:
    """Refuse a fit whose parts are not of one piece, although each of them opens.

    Args:
        fitted: as read.
        encoder: fingerprint of the encoder that the manifest names.

    Raises:
        BundleCorrupt: which parts do not fit together.
    """
    towers, catalogue = fitted.towers, fitted.catalogue
    texts, items = len(catalogue.texts), len(catalogue)
    rows, last = (fitted.events[name].max() for name in ("item_row", "seconds"))
    for part, found, wanted in (
        ("encoder", towers.encoder.fingerprint(), encoder),
        ("text_vectors", towers.text_vectors.shape, (texts, towers.encoder.dim)),
        ("item_vectors", towers.item_vectors.shape, (items, towers.index.dim)),
        ("searchable", towers.searchable.shape, (items,)),
        ("index", towers.index.size, items),
        ("text_neighbours", towers.text_neighbours.shape, (texts, texts)),
        ("item_tower", towers.item_tower.n_items, items),
        ("histories", max(items, cast(int, rows) + 1), items),
        ("as_of", fitted.as_of, max(fitted.as_of, cast(float, last))),
        *((name, matrix.shape, (items, items)) for name, matrix in fitted.snapshot.behaviour.items()),
    ):
        if found != wanted:
            raise BundleCorrupt(f"the version's {part} is {found}, its other parts need {wanted}; use another.")


def check_tables(parent: Fitted, tables: Tables) -> None:
    """Refuse tables that lack what the models were fitted with, or have it in another type or spelling.

    Raises:
        InvalidData: which column it is.
    """
    _same_columns(parent.catalogue.items, tables.items, "items")
    kind, given = parent.events.schema["user_id"], tables.interactions.schema["user_id"]
    if kind != given:
        raise InvalidData(
            table="interactions", column="user_id", rule=f"is {given}, the model was fitted with {kind}",
            remedy="spell the ids as at the fit, or fit again",
        )  # fmt: skip
    if parent.users is not None and tables.users is None:
        raise InvalidData(
            table="users", rule="is not given, but the model was fitted with it",
            remedy="pass the users table, or fit again without",
        )  # fmt: skip
    if parent.users is not None and tables.users is not None:
        _same_columns(parent.users, tables.users, "users")
        for name, values in parent.user_values.items():
            if not tables.users[name].cast(pl.String).is_in(list(values)).any():
                raise InvalidData(
                    table="users", column=name, rule=f"has none of the values of the fit, such as {values[0]!r}",
                    remedy="spell them as at the fit, or fit again",
                )  # fmt: skip


def _same_columns(old: pl.DataFrame, new: pl.DataFrame, table: str) -> None:
    for name, kind in old.schema.items():
        if new.schema.get(name) != kind:
            found = f"is {new.schema[name]}" if name in new.schema else "is missing"
            raise InvalidData(
                table=table, column=name, rule=f"{found}, the model was fitted with {name} as {kind}",
                remedy="give the column as at the fit, or fit again",
            )  # fmt: skip


def _before(interactions: pl.DataFrame, as_of: datetime | None) -> tuple[pl.DataFrame, int, datetime]:
    moment = end_of(interactions) if as_of is None else as_of
    known = interactions.filter(pl.col("timestamp") < moment)
    if known.is_empty():
        raise InvalidData(
            table="interactions", column="timestamp", rule=f"no interaction lies before as_of {moment}",
            remedy="pass a later as_of, or check the time zone of the timestamps",
        )  # fmt: skip
    return known, interactions.height - known.height, moment


def carried_vectors(
    parent: Fitted, texts: Sequence[str], cache: EmbeddingCache | None = None, *, progress: bool = False
) -> tuple[npt.NDArray[np.float32], int]:
    """Vectors of texts, float32 (n, text_dim), and how many of them are not the parent's own.

    Raises:
        PublishRefused: the encoder makes vectors that are none.
        BundleCorrupt: the cache is damaged.
    """
    rows = _places(parent, texts)
    if np.array_equal(rows, np.arange(len(parent.towers.text_vectors))):
        return parent.towers.text_vectors, 0
    vectors = np.empty((len(texts), parent.towers.encoder.dim), dtype=np.float32)
    known = rows >= 0
    vectors[known] = parent.towers.text_vectors[rows[known]]
    wanted = np.flatnonzero(~known)
    if not len(wanted):
        return vectors, 0
    before = 0 if cache is None else len(cache)
    try:
        made = parent.towers.encoder.encode([texts[row] for row in wanted.tolist()], cache=cache, progress=progress)
    except RuntimeError as error:
        if cache is None or "embedding cache" not in str(error):
            raise
        raise BundleCorrupt(str(error)) from error
    bad = int((~are_unit(made)).sum())
    if bad:
        raise PublishRefused(
            f"{bad:,} of {len(made):,} vectors that the encoder made are not finite and of unit length. "
            "Look at these texts and the encoder, or fit again."
        )
    vectors[wanted] = made
    return vectors, len(wanted) if cache is None else len(cache) - before


def _carried(
    parent: Fitted,
    catalogue: Catalogue,
    text_vectors: npt.NDArray[np.float32],
    events: pl.DataFrame,
    config: RecommenderConfig,
    device: str,
) -> Towers:
    old = parent.towers
    tower, vectors, searchable = carried_items(parent, catalogue, text_vectors, events["item_row"].to_numpy())
    return replace(
        old, item_tower=tower, text_vectors=text_vectors, item_vectors=vectors, searchable=searchable,
        index=configured_index(
            vectors, config, device,
            lambda: likely_queries(histories_of(events), old.history_encoder, vectors, seed=config.seed),
        ),
    )  # fmt: skip


def _known_behaviour(parent: Fitted, catalogue: Catalogue, events: pl.DataFrame) -> Mapping[str, sp.csr_matrix] | None:
    """The parent's neighbours learnt from behaviour, where nothing was done since and no item came or went."""
    same_items = catalogue.items["item_id"].equals(parent.catalogue.items["item_id"])
    return parent.snapshot.behaviour if same_items and events.equals(parent.events) else None


def _text_neighbours(read: Fitted, catalogue: Catalogue, config: RecommenderConfig) -> sp.csr_matrix:
    """Lexical neighbours; where few of many texts changed, only those are compared."""
    old, places = read.towers.text_neighbours, _places(read, catalogue.texts)
    bare = np.diff(old.indptr) == 0  # of no usable token, or added to a loaded recommender and never compared
    known = np.flatnonzero(places >= 0)
    places[known[bare[places[known]]]] = -1
    changed = int((places < 0).sum())
    if np.array_equal(places, np.arange(old.shape[0])):
        return old
    if len(places) < MANY_TEXTS or changed > FEW_CHANGED * len(places):
        return text_neighbours(catalogue.texts, config.lexical, progress=config.progress)
    return renewed_neighbours(old, places, catalogue.texts, config.lexical)


def _places(read: Fitted, texts: Sequence[str]) -> Rows:
    """The row that each text has there, int64 (n,); -1 where it is unknown."""
    known, wanted = (pl.Series("text", values, dtype=pl.String) for values in (read.catalogue.texts, texts))
    return places_of(known, wanted)


def carried_items(
    parent: Fitted, catalogue: Catalogue, text_vectors: npt.NDArray[np.float32], item_rows: npt.NDArray[np.int32]
) -> tuple[ItemTower, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Item tower, item vectors and what of them is searchable, for another catalogue.

    An item without a learnt residual, as a new one, is made searchable by its text alone.
    """
    old = parent.towers
    rows = parent.catalogue.rows_of(catalogue.items["item_id"])
    tower = renumbered(old.item_tower, rows)
    counts = np.bincount(item_rows, minlength=len(catalogue)).astype(np.float32)
    features = ItemFeatures(text_vectors, old.words.transform(catalogue.texts), catalogue.text_rows, counts)
    learnt = tower.has_residual() & (counts >= tower.config.min_interactions)
    return tower, *item_space(tower, features, catalogue.has_text | learnt)


def renumbered(tower: ItemTower, rows: Rows) -> ItemTower:
    """The tower for another catalogue; the same one where every item keeps its row.

    Args:
        tower: as learnt; it is not changed.
        rows: int64 (n,), the row that each item had, -1 for one that is new.
    """
    if np.array_equal(rows, np.arange(tower.n_items)):
        return tower
    state = dict(tower.state_dict())
    weight = state["residuals.weight"]
    known = torch.from_numpy(rows >= 0)
    moved = torch.zeros((len(rows), weight.shape[1]), dtype=weight.dtype)
    moved[known] = weight.cpu()[torch.from_numpy(rows[rows >= 0])]
    made = ItemTower.blank(tower.config, text_dim=tower.text_dim, n_words=tower.n_words, n_items=len(rows))
    made.load_state_dict({**state, "residuals.weight": moved})
    return made.to(weight.device).eval()


def _notes(notes: Sequence[str], moment: datetime, strange: str) -> tuple[str, ...]:
    learnt = [note for note in notes if not note.startswith(NOTE)]
    state = f"{NOTE}items, histories and sources as of {moment:%Y-%m-%d %H:%M:%S} UTC; models as fitted."
    return (*learnt, state, NOTE + strange) if strange else (*learnt, state)


def as_json(counts: Counts) -> dict[str, int]:
    """The counts by name."""
    return asdict(counts)
