"""Stage 1's models: the text encoder, the item tower, the history encoder and the index over their vectors.

Owns how they are loaded, trained and brought up to date from events. What is learnt in a step is
`indexing/contrastive.py`; which events may be learnt from is `recsys/pipeline.py`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch

from indexing.covisitation import covisitation
from indexing.encoder import BiEncoder
from indexing.history import Histories, HistoryEncoder
from indexing.index import VectorIndex, build_index, index_summary
from indexing.item_tower import ItemFeatures, ItemTower
from indexing.lexical import text_neighbours
from indexing.teacher import Teacher, load_teacher
from indexing.tuning import sample_queries
from indexing.vocabulary import extend_vocabulary
from indexing.warm_up import WarmUpConfig, warm_up
from indexing.words import Words
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.errors import InvalidConfig
from recsys.notes import Notes

WARM_UP_SHARE = 0.1  # of the time budget, for each neural training; towers are trained twice
TEXT_SHARE = 0.3
TOWER_SHARE = 0.2
INTEREST_SHARE = 0.1
QUERIES = 1024  # users, and vectors like items, that an approximate index is fitted to and measured with


@dataclass(frozen=True, slots=True)
class Towers:
    """Stage 1's trained models and what they made of the catalogue.

    Attributes:
        encoder: the text encoder.
        words: vocabulary of the item tower.
        item_tower: text vectors, words and behaviour -> item vectors.
        history_encoder: the user tower.
        event_kinds: names of the kinds of events, in the order of their rows.
        text_vectors: float32 (n_texts, text_dim), what the encoder makes of the catalogue's distinct texts.
        item_vectors: float32 (n_items, dim), unit length.
        searchable: bool (n_items,), items with a text or enough behaviour; other vectors mean nothing.
        index: over the item vectors.
        text_neighbours: float32 CSR (n_texts, n_texts), lexical.
        steps: of the training of item tower and history encoder.
    """

    encoder: BiEncoder
    words: Words
    item_tower: ItemTower
    history_encoder: HistoryEncoder
    event_kinds: tuple[str, ...]
    text_vectors: npt.NDArray[np.float32]
    item_vectors: npt.NDArray[np.float32]
    searchable: npt.NDArray[np.bool_]
    index: VectorIndex
    text_neighbours: sp.csr_matrix
    steps: int

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors of texts alone, a query or a profile, in the space of the item vectors, (n, dim)."""
        return self.item_tower.encode_texts(self.encoder.encode(texts), self.words.transform(texts))


def load_encoder(config: RecommenderConfig, device: str) -> BiEncoder:
    """The configured text encoder.

    Raises:
        InvalidConfig: it cannot be had; the message names the remedy.
    """
    try:
        return BiEncoder(config.encoder, device=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InvalidConfig(f"encoder: {error}") from error


def prepare_encoder(encoder: BiEncoder, catalogue: Catalogue, config: RecommenderConfig, notes: Notes) -> bool:
    """Teach the encoder the catalogue's language where that is asked for; whether it can read the catalogue then.

    Raises:
        InvalidConfig: the vocabulary of the configured encoder cannot be extended, or a teacher is asked for that is
            not there.
    """
    share = encoder.unknown_share(catalogue.texts)
    teacher = _teacher(notes) if config.extend_vocabulary else None
    settings = _warm_up_settings(config, teacher)
    if config.extend_vocabulary:
        added = _extended(encoder, catalogue, teacher, config)
        notes.add(f"encoder: {added} tokens of the catalogue added to its vocabulary.")
    steps = warm_up(
        encoder, catalogue.texts, settings, pairs=_title_and_description(catalogue), teacher=teacher,
        seed=config.seed, progress=config.progress,
    )  # fmt: skip
    if steps:
        notes.add(f"encoder: {steps} steps of warm-up on the catalogue's own text ({settings.objective}).")
    elif config.extend_vocabulary:
        notes.add('encoder: no warm-up, too few texts for it; "simcse" reads titles alone.', level=logging.WARNING)
    return _can_read(encoder, share, catalogue, config, notes)


def _warm_up_settings(config: RecommenderConfig, teacher: Teacher | None) -> WarmUpConfig:
    """As configured, but new tokens are always warmed up, and no longer than the time budget allows."""
    settings = config.warm_up
    if "distill" in settings.objective and teacher is None:
        remedy = (
            'install it, pip install "recsys-twostage[multilingual]"'
            if config.extend_vocabulary
            else "set extend_vocabulary = true"
        )
        raise InvalidConfig(
            f"warm_up.objective={settings.objective!r} learns from the teacher that new tokens start from, and there "
            f'is none; {remedy}, or choose "simcse" or "pairs"'
        )
    if config.extend_vocabulary and settings.objective == "none":
        settings = replace(settings, objective=WarmUpConfig().objective)
    limits = [limit for limit in (settings.max_seconds, budget(config, WARM_UP_SHARE)) if limit is not None]
    return replace(settings, max_seconds=min(limits, default=None))


def _extended(encoder: BiEncoder, catalogue: Catalogue, teacher: Teacher | None, config: RecommenderConfig) -> int:
    """How many of the catalogue's tokens were added to the encoder's vocabulary."""
    try:
        return extend_vocabulary(encoder, catalogue.texts, teacher=teacher, seed=config.seed)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise InvalidConfig(
            f"extend_vocabulary = true does not fit encoder.model={config.encoder.model!r}: {error}; "
            "or set extend_vocabulary = false"
        ) from error


def _teacher(notes: Notes) -> Teacher | None:
    """The frozen multilingual encoder that new tokens start from, where it is installed."""
    try:
        return load_teacher()
    except ImportError as error:
        notes.add(f"new tokens start without a teacher, which is worse by far: {error}", level=logging.WARNING)
        return None


def _can_read(encoder: BiEncoder, share: float, catalogue: Catalogue, config: RecommenderConfig, notes: Notes) -> bool:
    """Whether the tokenizer knows the catalogue's script; where it does not, training text models would be in vain."""
    left = encoder.unknown_share(catalogue.texts) if config.extend_vocabulary else share
    if left <= config.unknown_token_limit:
        return True
    notes.add(
        f"{left:.0%} of the text's tokens are unknown to the encoder {config.encoder.model!r} (limit "
        f"{config.unknown_token_limit:.0%}): it cannot read this language, so it is not fine-tuned and the interest "
        "model is left out. Behaviour, the item tower's own words and the lexical source carry the lists. Set "
        "encoder.model to a multilingual or Chinese checkpoint, such as 'BAAI/bge-small-zh-v1.5', or to a local folder "
        "with one" + ("." if config.extend_vocabulary else "; or set extend_vocabulary = true."),
        level=logging.WARNING,
    )
    return False


def _title_and_description(catalogue: Catalogue) -> list[tuple[str, str]]:
    """Two texts of one item for each that has both."""
    filled = catalogue.items.filter((pl.col("title") != "") & (pl.col("description") != ""))
    return list(filled.select("title", pl.col("description").str.head(400)).unique(maintain_order=True).iter_rows())


def learn_towers(
    encoder: BiEncoder,
    events: pl.DataFrame,
    event_kinds: tuple[str, ...],
    catalogue: Catalogue,
    config: RecommenderConfig,
    device: str,
    notes: Notes,
    *,
    tune: bool,
    covisited: sp.csr_matrix | None = None,
) -> Towers:
    """Fine-tune the text encoder, encode the catalogue, train item tower and history encoder, build the index.

    Args:
        encoder: its weights change where `tune` is set.
        events: `user_id`, `item_row`, `seconds`, `event_row`, `weight`; all of them are learnt from.
        event_kinds: names of the kinds, by `event_row`.
        catalogue: the items.
        config: everything else.
        device: resolved.
        notes: gets what was done.
        tune: whether the text encoder is fine-tuned.
        covisited: the co-visitation of these events, where it is there already.

    Raises:
        InvalidConfig: the training cannot work as configured, or needs what is not installed.
    """
    histories = histories_of(events)
    behaviour = covisitation_of(events, catalogue, config) if covisited is None else covisited
    text_steps = tune_encoder(encoder, behaviour, catalogue, config, device) if tune else 0
    text_vectors = encoder.encode(catalogue.texts, progress=config.progress)
    words = Words.fit(catalogue.texts, max_words=config.item_tower.max_words)
    towers = _train(histories, behaviour, encoder, words, event_kinds, text_vectors, catalogue, config, device)
    notes.add(
        f"stage 1: {text_steps} steps on the text encoder, {towers.steps} on item tower and history encoder; index: "
        f"{index_summary(towers.index)}."
    )
    return towers


def tune_encoder(
    encoder: BiEncoder, covisited: sp.csr_matrix, catalogue: Catalogue, config: RecommenderConfig, device: str
) -> int:
    """Fine-tune the text encoder in place on what is taken together; the steps taken. Raises as `learn_towers` does."""
    from indexing import text_lesson  # it takes seconds to import Lightning, which serving never needs

    with _as_settings():
        return text_lesson.tune_encoder(
            encoder, catalogue.texts, _between_texts(covisited, catalogue), config.contrastive, tuning=config.tuning,
            training=config.training, device=device, seed=config.seed, max_seconds=budget(config, TEXT_SHARE),
            progress=config.progress,
        )  # fmt: skip


def renew_towers(
    towers: Towers,
    events: pl.DataFrame,
    covisited: sp.csr_matrix,
    catalogue: Catalogue,
    config: RecommenderConfig,
    device: str,
    notes: Notes,
) -> Towers:
    """Item tower and history encoder trained anew on more events, in as many steps; the text encoder stays.

    Trained from the same start and never on what it will be asked to rank, the new pair scores candidates as the old
    one did in the label windows.
    """
    renewed = _train(
        histories_of(events), covisited, towers.encoder, towers.words, towers.event_kinds, towers.text_vectors,
        catalogue, config, device, like=towers,
    )  # fmt: skip
    notes.add(
        f"renewal: item tower and history encoder trained anew on all interactions, {renewed.steps} steps; the index "
        f"that is served: {index_summary(renewed.index)}."
    )
    return renewed


def _train(
    histories: Histories,
    behaviour: sp.csr_matrix,
    encoder: BiEncoder,
    words: Words,
    event_kinds: tuple[str, ...],
    text_vectors: npt.NDArray[np.float32],
    catalogue: Catalogue,
    config: RecommenderConfig,
    device: str,
    *,
    like: Towers | None = None,
) -> Towers:
    """Item tower and history encoder from the start, and the index; with `like`, as many steps as that took."""
    from indexing.tower_lesson import train_towers

    n_items = len(catalogue)
    counts = np.bincount(histories.item_rows, minlength=n_items).astype(np.float32)
    features = ItemFeatures(text_vectors, words.transform(catalogue.texts), catalogue.text_rows, counts)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        tower = ItemTower(config.item_tower, text_dim=encoder.dim, n_words=len(words), n_items=n_items)
        users = HistoryEncoder(config.history, item_dim=config.item_tower.dim, n_event_kinds=max(1, len(event_kinds)))
    tower.start(features, behaviour, seed=config.seed, progress=config.progress)
    tower.to(device), users.to(device)
    with _as_settings():
        steps = train_towers(
            tower, users, histories, features, config.contrastive, training=config.training, device=device,
            seed=config.seed, max_steps=None if like is None else like.steps, max_seconds=budget(config, TOWER_SHARE),
            progress=config.progress,
        )  # fmt: skip
    rare = counts < config.item_tower.min_interactions
    tower.forget(rare)
    vectors, searchable = item_space(tower, features, catalogue.has_text | ~rare)
    if like is None:
        compared = text_neighbours(catalogue.texts, config.lexical, progress=config.progress)
    else:
        compared = like.text_neighbours
    return Towers(
        encoder=encoder,
        words=words,
        item_tower=tower,
        history_encoder=users,
        event_kinds=event_kinds,
        text_vectors=text_vectors,
        item_vectors=vectors,
        searchable=searchable,
        index=configured_index(
            vectors, config, device, partial(likely_queries, histories, users, vectors, seed=config.seed)
        ),
        text_neighbours=compared,
        steps=steps,
    )


def item_space(
    tower: ItemTower, features: ItemFeatures, known: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Unit vectors of all items, and which of them can be searched: those of which something is known.

    Args:
        tower: as learnt.
        features: of the items.
        known: bool (n_items,), items with a text or enough behaviour.
    """
    vectors = tower.encode(features)
    nothing = ~vectors.any(axis=1)
    vectors[nothing, 0] = 1.0  # an index takes unit vectors alone; these are never looked for
    return vectors, known & ~nothing


def likely_queries(
    histories: Histories, encoder: HistoryEncoder, vectors: npt.NDArray[np.float32], *, seed: int
) -> npt.NDArray[np.float32]:
    """What an index over the item vectors will be asked: in turn users and vectors like items, float32 (n, dim).

    Where there are few users, they come again.
    """
    some = np.random.default_rng(seed).permutation(len(histories))[:QUERIES]
    users = encoder.encode(histories.take(some), vectors)[np.arange(QUERIES) % len(some)]
    others = sample_queries(vectors, seed=seed, n=QUERIES)
    return np.stack([users, others], axis=1).reshape(-1, vectors.shape[1])


def configured_index(
    vectors: npt.NDArray[np.float32],
    config: RecommenderConfig,
    device: str,
    queries: Callable[[], npt.NDArray[np.float32]],
) -> VectorIndex:
    """The index over the item vectors.

    Args:
        vectors: float32 (n_items, dim), unit length.
        config: what index.
        device: where it searches.
        queries: makes queries like those that will come.

    Raises:
        InvalidConfig: the configured kind cannot be built here or from so few vectors.
    """
    try:
        return build_index(vectors, config.index, device=device, queries=queries)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InvalidConfig(str(error)) from error


@contextmanager
def _as_settings() -> Iterator[None]:
    """What a training refuses before it begins is a matter of settings."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise InvalidConfig(str(error)) from error


def covisitation_of(events: pl.DataFrame, catalogue: Catalogue, config: RecommenderConfig) -> sp.csr_matrix:
    """What is taken soon after what, float32 CSR (n_items, n_items)."""
    return covisitation(histories_of(events), len(catalogue), config.covisitation)


def histories_of(events: pl.DataFrame) -> Histories:
    """All users' histories, in order of user, time and item."""
    by_user = events.sort("user_id", "seconds", "item_row")
    lengths = by_user["user_id"].rle().struct.field("len").to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    columns = (by_user[name].to_numpy() for name in ("item_row", "event_row", "seconds", "weight"))
    return Histories(offsets, *columns)


def budget(config: RecommenderConfig, share: float) -> float | None:
    """Seconds that a part of the fit may take, or None."""
    return None if config.time_budget is None else 60.0 * share * config.time_budget


def _between_texts(behaviour: sp.csr_matrix, catalogue: Catalogue) -> sp.csr_matrix:
    """From items to their texts, CSR (n_texts, n_texts)."""
    n_items = len(catalogue)
    ones = np.ones(n_items, dtype=np.float32)
    owns = sp.csr_matrix((ones, (catalogue.text_rows, np.arange(n_items))), shape=(len(catalogue.texts), n_items))
    return sp.csr_matrix(owns @ behaviour @ owns.T)
