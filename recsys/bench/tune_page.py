"""The trials of a search as one HTML file: how far it came, what each setting does, and every trial."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.bench.charts import Bar, bars, points
from recsys.bench.page import html_table, page, pairs_list
from recsys.bench.space import Range, Value

if TYPE_CHECKING:
    from recsys.bench.tune import Trial, Tuned

SHOWN = 100  # trials in the table, the best ones


def tune_page(tuned: Tuned) -> str:
    """The page."""
    scored = [trial for trial in tuned.trials if trial.score is not None]
    name = Path(tuned.dataset).name
    body = [
        f"<h1>{escape(name)}: which settings?</h1>",
        f'<div class="verdict"><p>{escape(tune_headline(tuned))}</p></div>',
        '<p class="warn">The best of many trials is partly luck: its score here is too high. '
        "Measure its settings on the test with <code>recsys-bench run --config best.toml</code>, once.</p>",
        *([_course(scored, tuned.metric), _settings(scored, tuned), _table(tuned)] if scored else []),
        _conditions(tuned),
    ]
    return page(f"{name}: trials", body)


def tune_headline(tuned: Tuned) -> str:
    """What was found, in a sentence or two."""
    refused = sum(trial.score is None for trial in tuned.trials)
    said = f"{len(tuned.trials)} trials of “{tuned.system}” on {tuned.n_users:,} people of the validation window."
    best = tuned.best
    if best is not None:
        settings = ", ".join(f"{key} {_text(value)}" for key, value in best.values.items())
        said += f" The best has {tuned.metric} {best.score:.4f}: {settings}."
        given = next((trial.score for trial in tuned.trials if trial.given and trial.score is not None), None)
        if best.given:
            said += " These are the settings that were given."
        elif given is not None:
            said += f" The settings that were given have {given:.4f}."
    return said + (f" {refused} settings could not be fitted." if refused else "")


def _course(scored: list[Trial], metric: str) -> str:
    """The score of each trial and the best until then."""
    so_far, best = [], -math.inf
    for trial in scored:
        best = max(best, _score(trial))
        so_far.append((float(trial.number), best))
    series = {"trial": [(float(trial.number), _score(trial)) for trial in scored], "best so far": so_far}
    drawn = points(
        series, title="scores of the trials", x_name="trial", y_name=metric, zero=False, joined=("best so far",)
    )
    return f"<h2>The search</h2>{drawn}"


def _settings(scored: list[Trial], tuned: Tuned) -> str:
    parts = []
    for key, part in tuned.space.items():
        found = [(trial.values[key], _score(trial)) for trial in scored if key in trial.values]
        drawn = _ranged(found, part, tuned.metric) if isinstance(part, Range) else _chosen(found, part, tuned.metric)
        parts.append(f"<div><h3>{escape(key)}</h3>{drawn}</div>")
    return f'<h2>What each setting does</h2><div class="two">{"".join(parts)}</div>'


def _ranged(found: list[tuple[Value, float]], part: Range, metric: str) -> str:
    where = [(float(value), score) for value, score in found]
    return points(
        {"trial": where}, title=f"{metric} by value", x_name="value", y_name=metric, zero=False, log_x=part.log
    )


def _chosen(found: list[tuple[Value, float]], choices: tuple[Value, ...], metric: str) -> str:
    drawn = []
    for choice in choices:
        scores = [score for value, score in found if value == choice]
        if scores:
            note = f"{max(scores):.4f} best of {len(scores)}"
            drawn.append(Bar(_text(choice), max(scores), colour=0, note=note))
    return bars(drawn, title=f"{metric} by choice")


def _table(tuned: Tuned) -> str:
    keys = list(tuned.space)
    rows = []
    for trial in sorted(tuned.trials, key=lambda trial: (-_score(trial), trial.number))[:SHOWN]:
        score = escape(trial.refused) if trial.score is None else f"{trial.score:.4f}"
        cells = [f"{trial.number}{' (given)' if trial.given else ''}", score, f"{trial.seconds:.1f}"]
        cells += [escape(_text(trial.values[key])) if key in trial.values else "–" for key in keys]
        rows.append((cells, "ours" if trial == tuned.best else ""))
    more = f"<p>The best {SHOWN} of {len(tuned.trials)}.</p>" if len(tuned.trials) > SHOWN else ""
    return f"<h2>The trials</h2>{more}{html_table(['trial', tuned.metric, 'seconds', *keys], rows)}"


def _conditions(tuned: Tuned) -> str:
    pairs = {
        "read from": tuned.dataset,
        "split": f"{tuned.split}, twice; {tuned.protocol}",
        "validation hash": tuned.validation_hash,
        "test hash": f"{tuned.test_hash} (cut off before the search, seen by no trial)",
        "seed": tuned.config.seed,
        "machine": ", ".join(f"{name} {value}" for name, value in tuned.machine.items()),
        "versions": ", ".join(f"{name} {value}" for name, value in tuned.versions.items()),
    }
    return f"<h2>How it was measured</h2>{pairs_list(pairs)}"


def _score(trial: Trial) -> float:
    return -1.0 if trial.score is None else trial.score


def _text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
