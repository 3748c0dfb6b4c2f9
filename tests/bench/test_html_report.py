import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import polars as pl
import pytest

from recsys.bench import html_report as module
from recsys.bench import run_bench
from recsys.bench.cli import main
from recsys.bench.result import ResultFolder
from recsys.datasets import Dataset
from recsys.synthetic import generate

HOSTILE = '<script>alert("x")</script>&'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of two baselines on users of a hostile column, with candidates that stand for a two-stage system's."""
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    users = made.users.with_columns(country=pl.lit(HOSTILE))
    data = Dataset(name=HOSTILE, interactions=made.interactions, items=made.items, users=users)
    path = tmp_path_factory.mktemp("bench") / "results"
    run_bench(data, systems={"popular": "popular", "item-knn": "item-knn"}, out=path, n_samples=20)
    return path


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_one_page_that_asks_nobody_and_runs_nothing(folder):
    page = module.report(ResultFolder(folder))
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", page)
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "prefers-color-scheme:dark" in page


def test_numbers_of_the_result_are_on_the_page(folder):
    result = ResultFolder(folder).result
    page = module.report(ResultFolder(folder))
    for row in result.tables[0].rows:
        assert f"{row.metrics['ndcg@10'].mean:.4f}" in page
    for text in (result.test_hash, result.versions["polars"], "How it was measured", "The data"):
        assert text in page


def test_everything_a_reader_asks_for_is_there(folder):
    result, page = ResultFolder(folder).result, module.report(ResultFolder(folder))
    for title in ("ndcg@10 by system", "ndcg by list length", "recall by list length", "quality against time"):
        assert f'aria-label="{title}"' in page
    assert 'aria-label="ndcg@10 by history length"' in page
    for name in ("density", "repeated pairs", "test people without history", "test pairs with new items", "from, to"):
        assert f"<dt>{name}</dt>" in page
    for name in ("seed, bootstrap samples", "machine", "versions", "settings", "split"):
        assert f"<dt>{name}</dt>" in page
    ndcg = result.tables[0].rows[0].metrics["ndcg@10"]
    assert f"<small>{ndcg.low:.4f}–{ndcg.high:.4f}</small>" in page
    assert "&quot;n_interest&quot;: 15" in page
    assert 'name="viewport" content="width=device-width,initial-scale=1"' in page
    assert page.count("<table>") == page.count('<div class="scroll"><table>')


def test_headline_names_the_best_and_says_when_not_to_believe(folder):
    result = ResultFolder(folder).result
    best = max(result.tables[0].rows, key=lambda row: row.metrics["ndcg@10"].mean).system
    assert f"“{best}” has the best lists of 2 systems" in module.headline(result)
    assert "Read the warnings" not in module.headline(replace(result, flags=()))


def test_the_page_is_about_whoever_was_compared_with_all_others(folder, tmp_path):
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    data = Dataset(name="x", interactions=made.interactions, items=made.items)
    systems = {"own": "item-knn", "popular": "popular", "recent": "recent-popular"}
    result = run_bench(data, systems=systems, reference="own", n_samples=20, out=tmp_path / "r")
    assert "“own” is " in module.headline(result)
    assert re.search(r"own\W* \(blue\)", module.report(ResultFolder(tmp_path / "r")))
    assert "<summary>Fairness</summary>" in module.report(ResultFolder(tmp_path / "r"))


def test_a_table_without_systems_is_a_sentence(folder):
    result = ResultFolder(folder).result
    bare = replace(result, tables=(replace(result.tables[0], rows=(), differences=(), segments=(), fairness=()),))
    assert module.headline(bare) == "No system has lists under “new items only”."


def test_calibration_is_told(folder):
    result = ResultFolder(folder).result
    known = {"n": 1234, "base_rate": 0.1, "ece": 0.0123, "brier": 0.09, "log_loss": 0.3, "reliability": []}
    rows = (replace(result.tables[0].rows[0], calibration=known), *result.tables[0].rows[1:])
    said = module._calibration(replace(result.tables[0], rows=rows))
    assert "1,234" in said
    assert "0.0123" in said


def test_splits_that_leak_are_warned_of(folder):
    source = ResultFolder(folder)
    assert "leaks across users" not in module.report(source)
    leaking = ResultFolder(folder)
    leaking.__dict__["result"] = replace(source.result, split="leave-last-out")
    assert "leaks across users" in module.report(leaking)


def test_command(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--out", str(tmp_path / "new" / "r.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(tmp_path / "new" / "r.html")
    assert (tmp_path / "new" / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["report", str(folder), "--out", str(tmp_path / "r.txt")]) == 2
    assert "must be a file that ends in .html" in capsys.readouterr().err
