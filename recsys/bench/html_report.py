"""A results folder as one HTML file: no script, no request, readable by whoever decides.

Owns what is said and in which order; charts are `charts`, counts by stage `waterfall`. All text of the data is escaped.
"""

import argparse
import json
from html import escape
from pathlib import Path

from recsys.bench.charts import Bar, bars, lines, points
from recsys.bench.names import BI_ENCODER, RETRIEVAL, SOURCE, TWO_STAGE
from recsys.bench.page import html_table, page, pairs_list
from recsys.bench.result import (
    CANDIDATE_RECALL,
    CEILING,
    COLD_RECALL,
    REPORT,
    RESULT,
    BenchResult,
    Estimate,
    ResultFolder,
    Row,
    Table,
)
from recsys.bench.waterfall import Waterfall, waterfalls
from recsys.errors import InvalidConfig

MAX_PARTS = 12  # of a segment that are drawn
COLOURS = 8
OF_CANDIDATES = {CANDIDATE_RECALL: "recall@100", COLD_RECALL: "of new items", CEILING: "ceiling"}
LEAKS = {
    "leave-last-out": "This split leaks across users in time: the systems learnt from other people's later actions. "
    "Such numbers compare systems with published tables; they do not say what will happen next week.",
    "random": "This split is random: the systems learnt from the future of the people they are asked about. "
    "The numbers are too high for any use but a quick comparison.",
}


def report(folder: ResultFolder) -> str:
    """The page.

    Raises:
        InvalidData: the folder lacks a file or is of another format.
    """
    result = folder.result
    stages = {found.protocol: found for found in waterfalls(folder)}
    name = Path(result.dataset).name
    body = [
        f"<h1>{escape(name)}: which recommender is better?</h1>",
        f'<p class="soft">{escape(result.split)} split, {result.counts["test"]:,} test rows, test hash '
        f"{escape(result.test_hash)}, seed {result.seed}. "
        "Small print and whiskers: 95% bootstrap intervals over users.</p>",
        f'<div class="verdict"><p>{escape(headline(result))}</p></div>',
        *(f'<p class="flag"><b>{escape(flag.kind)}</b>: {escape(flag.message)}</p>' for flag in result.flags),
        *([f'<p class="warn">{escape(LEAKS[result.split])}</p>'] if result.split in LEAKS else []),
        *(_protocol(table, result, stages.get(table.protocol)) for table in result.tables),
        _description(result),
        _conditions(result),
    ]
    return page(f"{name}: benchmark", body)


def headline(result: BenchResult) -> str:
    """What the first table says, in words that need no other."""
    table, metric = result.tables[0], f"ndcg@{result.k}"
    if not table.rows:
        return f"No system has lists under “{table.protocol}”."
    ranked = sorted(table.rows, key=lambda row: -_mean(row, metric))
    best = ranked[0]
    value = f"{metric} {_mean(best, metric):.4f}, {table.protocol}"
    said = f"“{best.system}” has the best lists of {len(ranked)} systems ({value})."
    hit = best.metrics.get(f"hitrate@{result.k}")
    if hit is not None and hit.mean is not None:
        said += f" {hit.mean:.0%} of {table.n_users:,} people find something they then took among the first {result.k}."
    who = _judged(table, metric)
    judged = [found for found in table.differences if found.system == who and found.metric == metric]
    for verdict, words in (
        ("better", "clearly better than"),
        ("worse", "clearly worse than"),
        ("undecided", "not told apart from"),
    ):
        names = [f"“{found.other}”" for found in judged if found.verdict == verdict]
        if names:
            said += f" “{who}” is {words} {', '.join(names)}."
    if result.flags:
        said += " Read the warnings below before you believe any of it."
    return said


def _protocol(table: Table, result: BenchResult, stages: Waterfall | None) -> str:
    k = result.k
    shown = [_bar(row, f"ndcg@{k}") for row in sorted(table.rows, key=lambda row: -_mean(row, f"ndcg@{k}"))]
    return "".join(
        [
            f"<h2>{escape(table.protocol)}</h2><p>{table.n_users:,} people, {table.n_pairs:,} items to be found, "
            f"{table.n_cold_pairs:,} of them new to the data. What people have taken before is "
            f"{'left out of' if table.filter_seen else 'allowed in'} the lists.</p>",
            f"<h3>ndcg@{k}</h3>{bars(shown, title=f'ndcg@{k} by system')}",
            _numbers(table, result),
            _differences(table),
            f"<h3>Longer and shorter lists</h3>{_left_out(table, k)}"
            f'<div class="two"><div>{_curves(table, result, "ndcg")}</div>'
            f"<div>{_curves(table, result, 'recall')}</div></div>",
            "" if stages is None else _stages(stages),
            _segments(table, result),
            _fairness(table, f"ndcg@{k}"),
            _calibration(table),
            _latency(table, k),
        ]
    )


def _numbers(table: Table, result: BenchResult) -> str:
    k = result.k
    names = [f"{name}@{k}" for name in ("ndcg", "recall", "hitrate", "map", "mrr", "precision", "coverage", "novelty",
             "ild", "gini", "popularity_lift", "serendipity")]  # fmt: skip
    there = [name for name in (*names, *OF_CANDIDATES) if any(name in row.metrics for row in table.rows)]
    head = ["system", *(OF_CANDIDATES.get(name, name) for name in there), "fit s", "people/s", "peak MB"]
    rows = []
    for row in sorted(table.rows, key=lambda row: -_mean(row, f"ndcg@{k}")):
        cells = [_name(row.system), *(_estimate(row.metrics.get(name)) for name in there)]
        cells += [f"{row.fit_seconds:.1f}", f"{row.users_per_second:,.0f}", f"{row.peak_mb:,.0f}"]
        rows.append((cells, "ours" if row.system == TWO_STAGE else ""))
    return html_table(head, rows)


def _differences(table: Table) -> str:
    if not table.differences:
        return ""
    rows = []
    for found in table.differences:
        value = f"{found.difference:+.4f} <small>{found.low:+.4f} to {found.high:+.4f}</small>"
        verdict = f'<span class="{escape(found.verdict)}">{escape(found.verdict)}</span>'
        names = f"{_name(found.system)} minus {_name(found.other)}"
        rows.append(([names, verdict, value, f"{found.p_adjusted:.3g}", escape(found.metric)], ""))
    head = ["user by user", "verdict", "difference", "p (Holm)", "metric"]
    return "<h3>Is the difference real?</h3>" + html_table(head, rows)


def _curves(table: Table, result: BenchResult, metric: str) -> str:
    series = {
        row.system: [(float(k), _mean(row, f"{metric}@{k}")) for k in result.ks if f"{metric}@{k}" in row.metrics]
        for row in _drawn(table, result.k)
    }
    return lines(series, title=f"{metric} by list length", x_name="list length k", y_name=f"{metric}@k")


def _stages(found: Waterfall) -> str:
    total = max(found.pairs, 1)

    def bar(label: str, count: int, colour: int) -> Bar:
        return Bar(label, count, colour=colour, note=f"{count:,} ({count / total:.1%})")

    steps = [bar("to be found", found.pairs, 1), bar(f"among {found.depth} candidates", found.candidates, 0)]
    steps += [bar(f"first {found.k} of the blend", found.retrieval, 2)]
    if found.no_interest is not None:
        steps.append(bar("without interest score", found.no_interest, 5))
    steps.append(bar(f"first {found.k} at the end", found.final, 3))
    sources = [
        Bar(source.name, source.found, colour=0, note=f"{source.found / total:.1%}, {source.alone:,} alone")
        for source in found.sources
    ]
    lift = f"Lift of the ranker over the blend: {found.final - found.retrieval:+,} items."
    if found.no_interest is not None:
        lift += f" Of it the interest score: {found.final - found.no_interest:+,}."
    return (
        f"<h3>Where it was lost</h3><p>{escape(found.sentence)} {lift}</p>"
        f'<div class="two"><div>{bars(steps, title="items left after each stage")}</div>'
        f'<div><p class="axis">items among the candidates, by source that brought them</p>'
        f"{bars(sources, title='candidates by source')}</div></div>"
    )


def _judged(table: Table, metric: str) -> str:
    """Whom the table is about: both stages, else whoever was compared with all others, else the best."""
    systems = [row.system for row in sorted(table.rows, key=lambda row: -_mean(row, metric))]
    compared = [found.system for found in table.differences]
    about_one = compared[:1] if len(set(compared)) == 1 and len(compared) == len(systems) - 1 else []
    return next((name for name in (TWO_STAGE, *about_one) if name in systems), systems[0] if systems else "")


def _segments(table: Table, result: BenchResult) -> str:
    metric, parts = f"ndcg@{result.k}", []
    judged = _judged(table, metric)
    other = _best_other(table, metric, judged)
    for segment in dict.fromkeys(found.segment for found in table.segments):
        mine = [found for found in table.segments if found.segment == segment]
        values = list(dict.fromkeys(found.value for found in mine))
        drawn = []
        for value in values[:MAX_PARTS]:
            for found in (one for name in (judged, other) for one in mine if (one.system, one.value) == (name, value)):
                estimate = found.metrics.get(metric, Estimate(mean=None))
                label = f"{value} ({found.n_users:,})" if found.system == judged else ""
                drawn.append(
                    Bar(label, estimate.mean or 0.0, estimate.low, estimate.high, 0 if found.system == judged else 1)
                )
        more = f" The first {MAX_PARTS} of {len(values)}." if len(values) > MAX_PARTS else ""
        parts.append(
            f"<div><h3>{escape(segment)}</h3>{more}" + bars(drawn, title=f"{metric} by {segment}", digits=3) + "</div>"
        )
    if not parts:
        return ""
    said = f"{metric} of “{judged}” (blue) and “{other}” (grey), by part; people in brackets."
    return f'<h3>For whom?</h3><p>{escape(said)}</p><div class="two">{"".join(parts)}</div>'


def _calibration(table: Table) -> str:
    rows = []
    for row in table.rows:
        if row.calibration is not None:
            numbers = (f"{row.calibration[name]:.4f}" for name in ("base_rate", "ece", "brier", "log_loss"))
            rows.append(([escape(row.system), f"{row.calibration['n']:,}", *numbers], ""))
    if not rows:
        return ""
    head = ["system", "scores", "taken of what was shown", "calibration error", "Brier", "log-loss"]
    return f"<details><summary>Calibration of scores that are probabilities</summary>{html_table(head, rows)}</details>"


def _fairness(table: Table, metric: str) -> str:
    judged, rows = _judged(table, metric), []
    other = _best_other(table, metric, judged)
    for found in table.fairness:
        if found.system not in (judged, other):
            continue
        groups = " / ".join(map(str, found.groups))
        reference = "" if found.reference is None else f"{found.reference:.3f}"
        cells = [escape(found.segment), escape(found.kind), escape(found.system), escape(groups)]
        rows.append(([*cells, f"{found.value:.3f}", reference], ""))
    if not rows:
        return ""
    head = ["segment", "kind", "system", "groups", "value", "share in train"]
    said = "Metric gap: the best group minus the worst. Exposure: a group's share of all places in the lists."
    return f"<details><summary>Fairness</summary><p>{said}</p>{html_table(head, rows)}</details>"


def _latency(table: Table, k: int) -> str:
    series = {
        row.system: [(1000.0 / row.users_per_second, _mean(row, f"ndcg@{k}"))]
        for row in _drawn(table, k)
        if row.users_per_second
    }
    drawn = points(
        series, title="quality against time", x_name="milliseconds a person, in bulk", y_name=f"ndcg@{k}", log_x=True
    )
    return f"<h3>Quality against time</h3>{_left_out(table, k)}{drawn}"


def _description(result: BenchResult) -> str:
    about, counts = result.description, result.counts
    pairs = {
        "read from": result.dataset,
        "interactions": f"{counts['interactions']:,}",
        "people": f"{counts['users']:,}",
        "items": f"{counts['items']:,}",
        "density": _share(about.get("density"), 3),
        "repeated pairs": _share(about.get("repeat_share")),
        "test people without history": _share(about.get("cold_user_share")),
        "test pairs with new items": _share(about.get("cold_item_share")),
        "from, to": f"{_day(about.get('first'))} to {_day(about.get('last'))} ({about.get('days') or 0:.0f} days)",
        "events": ", ".join(f"{name} {count:,}" for name, count in (about.get("events") or {}).items()),
        "repeats counted as hits": "yes" if result.repeats else "no",
    }
    return f"<h2>The data</h2>{pairs_list(pairs)}"


def _conditions(result: BenchResult) -> str:
    cuts = [
        f"as of {cut.as_of[:16].replace('T', ' ')} UTC: {cut.train:,} train, {cut.test:,} test, hash {cut.test_hash}"
        for cut in result.cuts
    ]
    pairs = {
        "split": f"{result.split}; {'; '.join(cuts)}",
        "settings": ", ".join(f"{name} {value}" for name, value in result.settings.items()),
        "seed, bootstrap samples": f"{result.seed}, {result.n_samples:,}",
        "machine": ", ".join(f"{name} {value}" for name, value in result.machine.items()),
        "versions": ", ".join(f"{name} {value}" for name, value in result.versions.items()),
    }
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    config = escape(json.dumps(result.config, indent=1, ensure_ascii=False))
    return (
        f"<h2>How it was measured</h2>{pairs_list(pairs)}"
        f"<details><summary>Notes of the run</summary><ul>{notes}</ul></details>"
        f"<details><summary>Configuration</summary><pre>{config}</pre></details>"
    )


def _bar(row: Row, metric: str) -> Bar:
    found = row.metrics.get(metric, Estimate(mean=None))
    return Bar(
        row.system.removeprefix(f"{TWO_STAGE}: ") if row.system.startswith(SOURCE) else row.system,
        found.mean or 0.0,
        found.low,
        found.high,
        0 if row.system == TWO_STAGE else 1,
    )


def _estimate(found: Estimate | None) -> str:
    if found is None or found.mean is None:
        return "–"
    interval = "" if found.low is None or found.high is None else f"<small>{found.low:.4f}–{found.high:.4f}</small>"
    return f"{found.mean:.4f}{interval}"


def _share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _mean(row: Row, metric: str) -> float:
    found = row.metrics.get(metric)
    return 0.0 if found is None or found.mean is None else found.mean


def _best_other(table: Table, metric: str, judged: str) -> str:
    """The best system that is not a stage of ours."""
    others = [row for row in table.rows if row.system != judged and not row.system.startswith(f"{TWO_STAGE}:")]
    return max(others, key=lambda row: _mean(row, metric)).system if others else judged


def _drawn(table: Table, k: int) -> list[Row]:
    """Our stages, then the others by ndcg, single sources last: there are only so many colours."""
    ours = [TWO_STAGE, RETRIEVAL, BI_ENCODER]

    def place(row: Row) -> tuple[int, bool, float]:
        known = ours.index(row.system) if row.system in ours else len(ours)
        return known, row.system.startswith(SOURCE), -_mean(row, f"ndcg@{k}")

    return sorted(table.rows, key=place)[:COLOURS]


def _left_out(table: Table, k: int) -> str:
    drawn = {row.system for row in _drawn(table, k)}
    names = [row.system for row in table.rows if row.system not in drawn]
    return f'<p class="soft">Not drawn: {escape(", ".join(names))}.</p>' if names else ""


def _name(system: str) -> str:
    """May be broken after a colon."""
    return escape(system).replace(":", ":<wbr>")


def _day(moment: object) -> str:
    return str(moment)[:10]


def command(arguments: argparse.Namespace) -> int:
    """Run `recsys-bench report`."""
    given = Path(arguments.result)
    folder = ResultFolder(given.parent if given.name == RESULT else given)
    out = folder.path / REPORT if arguments.out is None else Path(arguments.out)
    if out.suffix != ".html":
        raise InvalidConfig(f"--out {out} must be a file that ends in .html")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report(folder), encoding="utf-8")
    said = headline(folder.result)
    print(json.dumps({"report": str(out), "headline": said}) if arguments.json else f"{said}\n{out}")
    return 0
