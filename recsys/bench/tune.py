"""The settings that do best on a validation window: `recsys-bench tune`.

Owns what the trials see and how they are drawn and kept. The test of the split is cut off first and thrown away; what
is left is cut once more in the same way, and every trial is fitted and asked on that. Optuna (extra `tune`) draws.

    FOLDER/trials.journal   every trial as lines of JSON, from which a search goes on
    FOLDER/trials.json      the trials, the best first setting among them, and what they were measured on
    FOLDER/trials.html      the same as a page
    FOLDER/best.toml        the best settings, for --config
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recsys import metrics
from recsys.bench.names import TWO_STAGE
from recsys.bench.protocols import Prepared, prepare
from recsys.bench.result import as_json
from recsys.bench.sharing import SharedFits
from recsys.bench.space import Range, Space, Value, holds, value_of, with_values
from recsys.bench.systems import ask, variant_of
from recsys.bundle import library_versions
from recsys.config import RecommenderConfig, to_toml
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig, PublishRefused
from recsys.profiling import machine
from recsys.splits import hash_of

JOURNAL = "trials.journal"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting.

    Attributes:
        number: from 0, in the order of the search; interrupted ones are left out.
        values: by dotted key.
        score: mean of the metric over the users of the validation; None where the setting was refused.
        seconds: wall clock of fit and lists.
        given: whether these are the values that the configuration had.
        refused: why it could not be fitted; empty where it was.
    """

    number: int
    values: dict[str, Value]
    score: float | None
    seconds: float
    given: bool
    refused: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a search found.

    Attributes:
        dataset: name of the data set.
        system: who was asked.
        metric: such as "ndcg@10".
        protocol: which pairs counted, see `prepare`.
        split: kind of both cuts.
        test_hash: of the test that nobody saw; that of `run` with the same split.
        validation_hash: of the pairs that the trials were measured on.
        n_users: of the validation.
        space: as declared.
        trials: all that ended, in their order.
        config: the best settings; those given where no trial could be fitted.
        versions: of Python and the libraries.
        machine: `platform` and `cores`.
    """

    dataset: str
    system: str
    metric: str
    protocol: str
    split: str
    test_hash: str
    validation_hash: str
    n_users: int
    space: Space
    trials: tuple[Trial, ...]
    config: RecommenderConfig
    versions: dict[str, str]
    machine: dict[str, str | int]

    @property
    def best(self) -> Trial | None:
        """The trial with the best score, the first of several."""
        return _best(self.trials)

    def to_dict(self) -> dict[str, Any]:
        """The attributes, and `best`, ready for JSON."""
        space = {key: asdict(part) if isinstance(part, Range) else list(part) for key, part in self.space.items()}
        values = {name: getattr(self, name) for name in self.__slots__}
        best = None if self.best is None else asdict(self.best)
        trials = [asdict(trial) for trial in self.trials]
        return {"format": FORMAT, **values, "space": space, "best": best, "trials": trials,
                "config": asdict(self.config)}  # fmt: skip


def tune(
    dataset: Dataset,
    space: Space,
    config: RecommenderConfig | None = None,
    *,
    out: str | Path,
    system: str = TWO_STAGE,
    n_trials: int = 20,
    timeout: float | None = None,
    k: int = 10,
    progress: bool = False,
    **arguments: Any,
) -> Tuned:
    """Search a space on the validation window, or go on with a search.

    The first trial is the configuration as given, where the space holds it. What a trial draws depends on the seed and
    on the trials before it alone, so an interrupted search that goes on finds what it would have found.

    Args:
        dataset: the tables, all of them; the test part is cut off and never fitted on or asked about.
        space: see `recsys/bench/space.py`.
        config: whatever the space does not name; its `seed` also draws the trials.
        out: folder of the search; where it holds one on the same data, space and settings, that one goes on.
        system: "two-stage" or one of its names.
        n_trials: how many the search shall have in all, those of former runs among them.
        timeout: seconds after which no further trial begins; None for no limit.
        k: length of the lists; the metric is ndcg at it.
        progress: show a bar on stderr.
        arguments: of `prepare`, for both cuts.

    Raises:
        InvalidConfig: Optuna is not installed, a value is out of its range, the system has no settings, or the folder
            holds a search of something else.
        InvalidData: a table breaks a rule, or there is nothing to test or to validate on.
        PublishRefused: the folder holds something else.
    """
    if n_trials < 1 or (timeout is not None and timeout <= 0):
        raise InvalidConfig(f"n_trials is {n_trials} and timeout {timeout}; both must be above 0")
    if variant_of(system) is None:
        raise InvalidConfig(f"system {system!r} has no settings to search; take {TWO_STAGE!r} or one of its names")
    folder = _folder(Path(out))
    config = config or RecommenderConfig()
    prepared, test_hash = validation(dataset, config, k=k, ks=(k,), **arguments)
    study = _study(folder, _plan(prepared, test_hash, space, system))
    end = None if timeout is None else time.monotonic() + timeout

    made, fits = _tuned(study, prepared, test_hash, space, system), SharedFits()
    with tqdm(total=n_trials, initial=len(made.trials), desc="trials", disable=not progress) as bar:
        while len(made.trials) < n_trials and (end is None or time.monotonic() < end):
            _next(study, prepared, space, system, fits)
            made = _tuned(study, prepared, test_hash, space, system)
            _write(made, folder)
            bar.update(1)
            bar.set_postfix({made.metric: "" if made.best is None else f"{made.best.score:.4f}"})
    _write(made, folder)
    return made


def validation(dataset: Dataset, config: RecommenderConfig, **arguments: Any) -> tuple[Prepared, str]:
    """What is left of the data without the test, cut in the same way; and the hash of the test.

    Of several cuts the first counts: its train lies before the test of every one.
    """
    whole = prepare(dataset, config, **arguments)
    cut, tables = whole.split, whole.tables
    known = Dataset(name=dataset.name, interactions=cut.train, items=tables.items, users=tables.users)
    prepared = prepare(known, config, **arguments)
    main = prepared.protocols[0].name
    cuts = [replace(part, protocols=tuple(p for p in part.protocols if p.name == main)) for part in prepared.cuts]
    return replace(prepared, cuts=tuple(part for part in cuts if part.protocols)), cut.test_hash


def score(prepared: Prepared, system: str, fits: SharedFits | None = None) -> float:
    """Mean ndcg at k over all users of all cuts; earlier fits lend their stage 1 where nothing that it reads changed.

    Raises:
        InvalidConfig: the system has no lists with these settings.
    """
    answers, _ = ask(prepared, [system], fits=fits)
    values = []
    for answer in answers:
        truth = prepared.cuts[answer.cut].protocols[0].truth
        hits = metrics.hit_matrix(metrics.first_k(answer.lists, prepared.k), truth, prepared.k)
        values.append(metrics.ndcg(hits, prepared.k))
    if not values:
        raise InvalidConfig(f"{system} has no lists with these settings")
    return float(np.concatenate(values).mean())


def _next(study: Any, prepared: Prepared, space: Space, system: str, fits: SharedFits) -> None:
    """Draw, fit, ask and keep one trial; an interruption leaves it among those that failed."""
    optuna = _optuna()
    ended = _ended(study)
    seed = np.random.SeedSequence([prepared.config.seed, len(ended)]).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(seed))
    given = {key: value_of(prepared.config, key) for key in space}
    if not ended and all(holds(part, given[key]) for key, part in space.items()):
        study.enqueue_trial(given)
    trial = study.ask()
    start = time.perf_counter()
    try:
        values = {key: _draw(trial, key, part) for key, part in space.items()}
        found = score(replace(prepared, config=with_values(prepared.config, values)), system, fits)
    except InvalidConfig as error:
        trial.set_user_attr("refused", str(error))
        trial.set_user_attr("seconds", time.perf_counter() - start)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    else:
        trial.set_user_attr("seconds", time.perf_counter() - start)
        study.tell(trial, found)


def _draw(trial: Any, key: str, part: Range | tuple[Value, ...]) -> Value:
    if not isinstance(part, Range):
        drawn: Value = trial.suggest_categorical(key, part)
    elif part.whole:
        drawn = trial.suggest_int(key, part.low, part.high, log=part.log, step=part.step or 1)
    else:
        drawn = trial.suggest_float(key, part.low, part.high, log=part.log, step=part.step)
    return drawn


def _ended(study: Any) -> list[Any]:
    """Trials with a score, and those that were refused; not those that were interrupted."""
    states = _optuna().trial.TrialState
    return list(study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))


def _trial(number: int, trial: Any, space: Space, config: RecommenderConfig) -> Trial:
    values = {key: trial.params[key] for key in space if key in trial.params}
    return Trial(
        number=number,
        values=values,
        score=trial.value,
        seconds=trial.user_attrs.get("seconds", 0.0),
        given=values == {key: value_of(config, key) for key in space},
        refused=trial.user_attrs.get("refused", ""),
    )


def _tuned(study: Any, prepared: Prepared, test_hash: str, space: Space, system: str) -> Tuned:
    trials = tuple(_trial(number, trial, space, prepared.config) for number, trial in enumerate(_ended(study)))
    best = _best(trials)
    config = prepared.config if best is None else with_values(prepared.config, best.values)
    return Tuned(
        dataset=prepared.dataset,
        system=system,
        metric=f"ndcg@{prepared.k}",
        protocol=prepared.protocols[0].name,
        split=prepared.split.kind,
        test_hash=test_hash,
        validation_hash=_hash(prepared),
        n_users=sum(len(cut.protocols[0].users) for cut in prepared.cuts),
        space=space,
        trials=trials,
        config=config,
        versions=library_versions(),
        machine=machine(),
    )


def _hash(prepared: Prepared) -> str:
    return hash_of(*(cut.split.test for cut in prepared.cuts))


def _plan(prepared: Prepared, test_hash: str, space: Space, system: str) -> dict[str, Any]:
    """What two runs must share to be one search."""
    return {
        "data": [prepared.dataset, test_hash, _hash(prepared), prepared.split.train.height],
        "system": [system, prepared.k],
        "space": [[key, repr(part)] for key, part in space.items()],
        "config": to_toml(prepared.config),
    }


def _folder(folder: Path) -> Path:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).is_file()):
        raise PublishRefused(f"{folder} exists and holds no trials; give another folder or remove it")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    return folder


def _study(folder: Path, plan: Mapping[str, Any]) -> Any:
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend), study_name="tune", direction="maximize", load_if_exists=True
    )
    former = study.user_attrs.get("plan", plan)
    other = [name for name, value in plan.items() if former.get(name) != value]
    if other:
        raise InvalidConfig(f"{folder} holds a search with other {', '.join(other)}; give another folder")
    study.set_user_attr("plan", plan)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # of a run that was killed
    return study


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InvalidConfig(
            'recsys-bench tune needs the package optuna, which is not installed: pip install "recsys-twostage[tune]"'
        ) from error
    return optuna


def _write(made: Tuned, folder: Path) -> None:
    from recsys.bench.tune_page import tune_page

    (folder / "trials.json").write_text(as_json(made.to_dict()), encoding="utf-8")
    (folder / "trials.html").write_text(tune_page(made), encoding="utf-8")
    (folder / "best.toml").write_text(to_toml(made.config), encoding="utf-8")


def _best(trials: Sequence[Trial]) -> Trial | None:
    return max((trial for trial in trials if trial.score is not None), key=lambda trial: trial.score or 0, default=None)
