"""The whole configuration: one dataclass for each part, composed here, and read from TOML."""

import difflib
import json
import tomllib
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from indexing.contrastive import ContrastiveConfig
from indexing.covisitation import CovisitationConfig
from indexing.ease import EaseConfig
from indexing.encoder import EncoderConfig
from indexing.history import HistoryConfig
from indexing.index import IndexConfig
from indexing.item_tower import ItemTowerConfig
from indexing.lexical import LexicalConfig
from indexing.retriever import RetrieverConfig
from indexing.training_config import TrainingConfig
from indexing.tuning_scope import TuningConfig
from indexing.warm_up import WarmUpConfig
from ranking.features import FeatureConfig
from ranking.interest import InterestConfig
from ranking.probability import HeadConfig
from ranking.ranker import MAX_LABEL, RankerConfig
from recsys.errors import InvalidConfig
from recsys.windows import WindowConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommenderConfig:
    """Everything a fit depends on besides the tables.

    Attributes:
        encoder: the text encoder.
        item_tower: text, words and behaviour to item vectors.
        history: the user tower.
        warm_up: training of the encoder on the catalogue's own text, before any behaviour.
        tuning: which weights of the encoder are fine-tuned.
        contrastive: what both towers learn from a step.
        training: how Lightning runs it.
        index: the vector index.
        covisitation: neighbours from behaviour, by what is taken soon after what.
        ease: neighbours from behaviour, by a linear model.
        lexical: neighbours from words and characters.
        retriever: depth of each source.
        interest: the cross-encoder.
        features: behavioural features.
        ranker: LightGBM.
        heads: LightGBM again, for probabilities.
        windows: how time is divided.
        extend_vocabulary: add the catalogue's characters and words to the tokenizer, and warm the encoder up on them.
        renew_towers: train item tower and history encoder anew on all interactions once the ranker has learnt.
        time_budget: minutes that a fit should take, about; it bounds every neural training: warm-up, text encoder,
            towers (twice) and interest model. Reading, encoding and LightGBM come on top. None for no limit.
        n_interest: candidates per user that the cross-encoder scores, the best by stage 1; 0 leaves it out.
        keep_interest: "earned" keeps the cross-encoder where lists of the last label window are surely better with it;
            "always" wherever it could be trained.
        max_label_users: users per label window that stage 2 looks at, drawn at random where there are more.
        max_ranker_rows: candidate rows per label window that the ranker learns from; users are drawn at random for it.
        event_grades: kinds of events from the weakest to the strongest, such as ("view", "cart", "purchase"): the
            ranker puts the items of the stronger above those of the weaker. A kind that is not named counts as weakest.
        probabilities: learn what `predict_proba` needs.
        repeat_limit: `filter_seen="auto"` shows seen items where at least this share of interactions are repeats.
        novelty_limit: items that nobody took yet are a source of their own where at least this share of what is taken
            in label window B was never taken before.
        unknown_token_limit: above this share of unknown tokens the encoder cannot read the catalogue, and fit warns.
        ignore_columns: columns of the items that must not become features.
        unknown_items: "drop" or "raise" interactions whose item is not in the items table.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: of everything random.
        progress: show bars on stderr.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    item_tower: ItemTowerConfig = field(default_factory=ItemTowerConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    warm_up: WarmUpConfig = field(default_factory=lambda: WarmUpConfig(objective="none"))
    tuning: TuningConfig = field(default_factory=TuningConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    covisitation: CovisitationConfig = field(default_factory=CovisitationConfig)
    ease: EaseConfig = field(default_factory=EaseConfig)
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    interest: InterestConfig = field(default_factory=InterestConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    extend_vocabulary: bool = False
    renew_towers: bool = True
    time_budget: float | None = None
    n_interest: int = 15
    keep_interest: Literal["earned", "always"] = "earned"
    max_label_users: int = 20_000
    max_ranker_rows: int = 1_000_000
    event_grades: tuple[str, ...] = ()
    probabilities: bool = True
    repeat_limit: float = 0.15
    novelty_limit: float = 0.2
    unknown_token_limit: float = 0.2
    ignore_columns: tuple[str, ...] = ()
    unknown_items: Literal["drop", "raise"] = "drop"
    device: str = "auto"
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("n_interest", 0), ("max_label_users", 1), ("max_ranker_rows", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidConfig(f"{name}={getattr(self, name)} must be {least} or more")
        if self.time_budget is not None and self.time_budget <= 0:
            raise InvalidConfig(f"time_budget={self.time_budget} is in minutes, it must be positive")
        for name in ("repeat_limit", "novelty_limit", "unknown_token_limit"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidConfig(f"{name}={getattr(self, name)} is a share, it must lie in [0, 1]")
        if self.unknown_items not in ("drop", "raise"):
            raise InvalidConfig(f'unknown_items={self.unknown_items!r} must be "drop" or "raise"')
        if self.keep_interest not in ("earned", "always"):
            raise InvalidConfig(f'keep_interest={self.keep_interest!r} must be "earned" or "always"')
        if len(set(self.event_grades)) < len(self.event_grades) or len(self.event_grades) > MAX_LABEL:
            raise InvalidConfig(f"event_grades={self.event_grades!r} must be at most {MAX_LABEL} different kinds")


def read_config(path: str | Path) -> RecommenderConfig:
    """Read a TOML file whose tables are named like the attributes of `RecommenderConfig`.

    Raises:
        InvalidConfig: the file cannot be read or is no TOML, a key is unknown (the message names the nearest known
            one), or a value has the wrong type or is refused by its part.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidConfig(f"config file {path} does not exist; check its spelling and the current folder") from error
    except OSError as error:
        raise InvalidConfig(f"config file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"config file {path} is not valid TOML: {error}") from error
    return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> RecommenderConfig:
    """Build the configuration from nested dictionaries; what is not named keeps its default."""
    config: RecommenderConfig = build(RecommenderConfig, values, "")
    return config


def to_toml(config: RecommenderConfig) -> str:
    """What differs from the defaults, as a file that `read_config` reads; `progress` is left out."""
    lines, tables = [], []
    for key, value, default in _changed(replace(config, progress=True), RecommenderConfig()):
        if is_dataclass(value):
            inner = [f"{name} = {_literal(given)}" for name, given, _ in _changed(value, default)]
            tables.append("\n".join(["", f"[{key}]", *inner]))
        else:
            lines.append(f"{key} = {_literal(value)}")
    return "\n".join([*lines, *tables]).lstrip("\n") + "\n"


def _changed(part: Any, default: Any) -> list[tuple[str, Any, Any]]:
    values = [(entry.name, getattr(part, entry.name), getattr(default, entry.name)) for entry in fields(part)]
    return [(name, value, usual) for name, value, usual in values if value != usual]


def _literal(value: Any) -> str:
    # A text of JSON is one of TOML too, but for the delete character, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def build(kind: Any, values: dict[str, Any], where: str) -> Any:
    """A configuration dataclass from nested dictionaries; `where` is the prefix of its keys in messages.

    Raises:
        InvalidConfig: a key is unknown, or a value has the wrong type or is refused.
    """
    hints = get_type_hints(kind)
    known = [entry.name for entry in fields(kind)]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {where}{near[0]!s}?" if near else f"; known keys: {', '.join(known)}"
            raise InvalidConfig(f"unknown key {where}{key}{hint}")
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise InvalidConfig(f"{where}{key} must be a table, got {value!r}")
            value = build(hints[key], value, f"{where}{key}.")
        elif not _fits(value, hints[key]):
            raise InvalidConfig(f"{where}{key} must be {_name_of(hints[key])}, got {value!r}")
        arguments[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except ValueError as error:
        part = where.removesuffix(".") or "config"
        message = str(error).removeprefix(f"{part}: ")
        raise InvalidConfig(f"{part}: {message}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of its field; which values of that type are allowed is the part's business."""
    kind = get_origin(hint)
    if kind is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    if kind is tuple:
        return isinstance(value, list | tuple) and all(_fits(part, get_args(hint)[0]) for part in value)
    if kind is Literal:
        return isinstance(value, str)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _name_of(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).removeprefix("typing.")
