import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from ranking.interest import InterestConfig
from recsys import metrics
from recsys.bench import Answers, ask_baselines, prepare, render, report, run_bench
from recsys.bench.measure import compared
from recsys.bench.names import BI_ENCODER, RETRIEVAL, TWO_STAGE
from recsys.bench.result import BenchResult, ResultFolder, read_result
from recsys.bundle import library_versions
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.errors import DeviceUnavailable, InvalidConfig, InvalidData
from recsys.profiling import Usage, _lifetime_peak_mb, machine, metered
from recsys.synthetic import generate

USAGE = Usage(seconds=0.5, peak_mb=100.0)
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def config(tiny_bert):
    return RecommenderConfig(
        encoder=EncoderConfig(model=tiny_bert),
        contrastive=ContrastiveConfig(encoder_steps=3, tower_max_steps=5),
        interest=InterestConfig(max_groups=16, group_size=4),
        n_interest=4,
        device="cpu",
        progress=False,
    )


def dataset_of(rows, items=("a", "b", "c", "d", "e")):
    """`rows`: (user, item) in order of time, one a day."""
    interactions = pl.DataFrame(
        {
            "user_id": [user for user, _ in rows],
            "item_id": [item for _, item in rows],
            "timestamp": [START + timedelta(days=day) for day in range(len(rows))],
        }
    )
    return Dataset(
        name="tiny", interactions=interactions, items=pl.DataFrame({"item_id": list(items), "title": list(items)})
    )


def lists_of(lists):
    rows = [(user, item, rank, -float(rank)) for user, items in lists.items() for rank, item in enumerate(items, 1)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rank", "score"], orient="row")


def answers_of(protocol, **systems):
    """`systems`: name -> (lists, candidates)."""
    return [
        Answers(
            system=name.replace("_", "-"),
            protocol=protocol,
            lists=lists_of(lists),
            candidates=lists_of(candidates),
            fit=USAGE,
            ask=USAGE,
        )
        for name, (lists, candidates) in systems.items()
    ]


REPEATING = dataset_of([("u", "a"), ("u", "a"), ("v", "b"), ("v", "a"), ("u", "b"), ("u", "a"), ("v", "c"), ("w", "d")])
"""The last three of eight rows are the test: u takes a again, v takes c for the first time, w is new."""


@pytest.fixture
def repeating():
    return prepare(REPEATING, RecommenderConfig(repeat_limit=0.1), test_share=3 / 8)


class TestPrepare:
    def test_where_repeats_are_common_both_protocols_are_made(self, repeating):
        counted, new, cold = repeating.protocols
        assert (counted.name, counted.filter_seen) == ("repeats counted", False)
        assert counted.truth.rows() == [("u", "a"), ("v", "c")]
        assert (new.name, new.filter_seen) == ("new items only", True)
        assert new.truth.rows() == [("v", "c")]
        assert counted.users.to_list() == ["u", "v"]
        assert (cold.name, cold.truth.rows()) == ("users without history", [("w", "d")])

    def test_where_repeats_are_rare_only_new_items_count(self):
        prepared = prepare(REPEATING, RecommenderConfig(repeat_limit=0.9), test_share=3 / 8)
        assert [protocol.name for protocol in prepared.protocols] == ["new items only", "users without history"]
        asked = prepare(REPEATING, RecommenderConfig(repeat_limit=0.9), test_share=3 / 8, repeats="yes")
        assert asked.protocols[0].name == "repeats counted"
        assert "Repeat purchases count as hits under 'repeats counted'." in asked.notes

    def test_where_no_test_pair_is_new_only_repeats_are_counted(self):
        data = dataset_of([("u", "a"), ("u", "b"), ("u", "a"), ("u", "b")])
        prepared = prepare(data, RecommenderConfig(repeat_limit=0.1), test_share=0.25)
        assert [protocol.name for protocol in prepared.protocols] == ["repeats counted"]

    def test_the_limit_is_the_recommenders(self):
        share = 2 / 8
        at_limit = prepare(REPEATING, RecommenderConfig(repeat_limit=share), test_share=3 / 8)
        assert [protocol.name for protocol in at_limit.protocols][:2] == ["repeats counted", "new items only"]

    def test_users_without_history_are_counted_in_a_note(self, repeating):
        note = "1 of 3 test users have no history in train; they get what is popular and have a table of their own."
        assert note in repeating.notes

    def test_leave_last_out_follows_the_repeats(self):
        data = dataset_of([("u", item) for item in "abcaba"])
        common = prepare(data, RecommenderConfig(repeat_limit=0.1), split="leave-last-out", min_items=2)
        assert common.protocols[0].name == "repeats counted"
        assert common.protocols[0].truth.rows() == [("u", "a")]
        rare = prepare(data, RecommenderConfig(repeat_limit=0.9), split="leave-last-out", min_items=2)
        assert [protocol.name for protocol in rare.protocols] == ["new items only"]
        assert rare.protocols[0].truth.rows() == [("u", "c")]

    def test_progress_reaches_our_config(self):
        assert prepare(REPEATING, RecommenderConfig(), test_share=0.4, progress=True).config.progress is True
        assert prepare(REPEATING, RecommenderConfig(), test_share=0.4).config.progress is False

    @pytest.mark.parametrize("k", [0, 101])
    def test_k_has_limits(self, k):
        with pytest.raises(InvalidConfig, match=rf"k is {k}; it must lie between 1 and 100"):
            prepare(REPEATING, k=k)

    def test_a_device_that_is_not_there_is_found_out_before_the_work(self):
        with pytest.raises(DeviceUnavailable, match=r"'cuda:99' is not there"):
            prepare(REPEATING, RecommenderConfig(device="cuda:99"), test_share=3 / 8)

    def test_nothing_to_test_is_an_error_with_a_remedy(self):
        data = dataset_of([("u", "a"), ("v", "b")])
        with pytest.raises(InvalidData, match=r"time split leaves nothing to test: .*1 of 2 rows.*bring more"):
            prepare(data, test_share=0.5)

    def test_a_rolling_cut_without_anything_to_test_is_left_out(self):
        rows = [("u", "a"), ("u", "b"), ("v", "a"), ("x", "a"), ("x", "b"), ("u", "c")]
        prepared = prepare(dataset_of(rows), RecommenderConfig(), split="rolling", n_cuts=3, test_share=0.5)
        assert [cut.place for cut in prepared.cuts] == [0, 1]
        assert "1 of 3 cuts have nothing to test." in prepared.notes


class TestReport:
    """Numbers against what pencil and paper say."""

    def test_a_row_by_hand(self, repeating):
        answers = answers_of(
            "repeats counted",
            popular=({"u": ["b", "a"], "v": ["a", "b"]}, {"u": ["b", "a"], "v": ["a", "b", "c"]}),
        )
        table = report(repeating, answers).tables[0]
        (row,) = table.rows
        assert (table.n_users, table.n_pairs, table.n_cold_pairs) == (2, 2, 1)
        ndcg = row.metrics["ndcg@10"]
        assert ndcg.mean == pytest.approx((1 / np.log2(3) + 0) / 2)
        assert row.metrics["recall@10"].mean == pytest.approx(1 / 2)
        assert row.metrics["candidate_recall@100"].mean == pytest.approx(1.0)
        assert row.metrics["coverage@10"].mean == pytest.approx(2 / 5)
        assert row.metrics["cold_recall@100"].mean == pytest.approx(1.0)
        assert row.metrics["ceiling"].mean is None
        assert row.users_per_second == pytest.approx(2 / 0.5)
        assert (row.fit_seconds, row.peak_mb, row.short_lists) == (0.5, 100.0, 2)
        expected = metrics.bootstrap_interval(np.array([1 / np.log2(3), 0]), seed=0)
        assert (ndcg.low, ndcg.high) == pytest.approx(expected)

    def test_cold_recall_is_over_users_with_new_items_and_none_without_any(self, repeating):
        missed = answers_of("new items only", popular=({"v": ["d"]}, {"v": ["d"]}))
        assert report(repeating, missed).tables[1].rows[0].metrics["cold_recall@100"].mean == 0.0
        two = dataset_of([("u", "a"), ("v", "a"), ("u", "c"), ("u", "d"), ("v", "e")])  # c, d and e are new
        asked = prepare(two, RecommenderConfig(), test_share=3 / 5)
        half = report(asked, answers_of("new items only", popular=({"u": ["c"]}, {"u": ["c"], "v": ["e"]})))
        assert half.tables[0].n_cold_pairs == 3
        assert half.tables[0].rows[0].metrics["cold_recall@100"].mean == pytest.approx((1 / 2 + 1) / 2)
        warm = prepare(dataset_of([("u", "a"), ("v", "b"), ("u", "b")]), RecommenderConfig(), test_share=1 / 3)
        found = answers_of("new items only", popular=({"u": ["b"]}, {"u": ["b"]}))
        table = report(warm, found).tables[0]
        assert table.n_cold_pairs == 0
        assert table.rows[0].metrics["cold_recall@100"].mean is None
        assert "none" in render(report(warm, found))

    def test_the_ceiling_looks_deeper_than_the_first_candidates(self):
        names = [f"i{place:03}" for place in range(150)]
        asked = prepare(dataset_of([("u", "i000"), ("v", "i001"), ("u", "i140")], names), test_share=1 / 3)
        (answer,) = answers_of("new items only", two_stage=({"u": names[:10]}, {"u": names[1:]}))
        candidates = answer.candidates.with_columns(source=pl.lit("vector"))
        table = report(asked, [replace(answer, candidates=candidates, staged=True)]).tables[0]
        found = {name: table.rows[0].metrics[name].mean for name in ("candidate_recall@100", "ceiling")}
        assert found == {"candidate_recall@100": 0.0, "ceiling": 1.0}

    def test_differences_are_paired_and_both_stages_meet_every_whole_system(self, repeating):
        good, bad = {"u": ["a"], "v": ["c"]}, {"u": ["b"], "v": ["b"]}
        answers = answers_of("repeats counted", popular=(bad, bad), two_stage=(good, good))
        retrieval = replace(answers[0], system=RETRIEVAL)
        table = report(repeating, [answers[0], retrieval, answers[1]]).tables[0]
        assert [(found.system, found.other, found.difference) for found in table.differences] == [
            ("two-stage", "popular", 1.0),
            ("two-stage", "two-stage: retrieval", 1.0),
        ]
        assert (table.differences[0].low, table.differences[0].high) == (1.0, 1.0)

    @pytest.mark.parametrize(
        ("systems", "reference", "expected"),
        [
            (["a", "b", "c"], None, ["a b", "a c", "b c"]),
            (["a", "b", "c"], "b", ["b a", "b c"]),
            (["a", "c"], "b", []),
            (
                ["a", BI_ENCODER, "two-stage: source:ease", RETRIEVAL, TWO_STAGE],
                None,
                [
                    "two-stage a", "two-stage two-stage: bi-encoder", "two-stage two-stage: retrieval",
                    "two-stage: retrieval two-stage: bi-encoder", "two-stage: retrieval two-stage: source:ease",
                ],
            ),
            (["a", "two-stage: source:ease", RETRIEVAL], None,
             ["two-stage: retrieval a", "two-stage: retrieval two-stage: source:ease"]),
            (["a", TWO_STAGE], "a", ["a two-stage"]),
        ],
    )  # fmt: skip
    def test_nobody_is_compared_who_was_not_asked_about(self, systems, reference, expected):
        assert [" ".join(pair) for pair in compared(systems, reference)] == expected

    def test_a_result_says_what_it_was_measured_on(self, repeating):
        result = report(repeating, [], notes=["A note of the fit.", repeating.notes[-1]])
        assert result.counts == {"interactions": 8, "items": 5, "users": 3, "train": 5, "test": 3}
        assert result.test_hash == repeating.split.test_hash
        assert result.cuts[0].as_of == "2024-01-06T00:00:00+00:00"
        assert result.notes.count(repeating.notes[-1]) == 1
        assert result.notes[-1] == "A note of the fit."
        assert result.versions == library_versions()
        assert result.machine == machine()


class TestRender:
    def test_columns_are_aligned_and_headed(self, repeating):
        good, bad = {"u": ["a"], "v": ["c"]}, {"u": ["b"], "v": ["b"]}
        answers = answers_of("repeats counted", recent_popular=(bad, bad), two_stage=(good, good))
        result = report(repeating, answers)
        lines = render(replace(result, tables=result.tables[:1])).splitlines()
        head = next(row for row, line in enumerate(lines) if line.startswith("repeats counted"))
        assert f"2 users, 2 pairs, 1 of them with items new to the data; test {result.test_hash}" in lines[head]
        table = lines[head + 1 : head + 4]
        assert len({len(line) for line in table}) == 1
        assert "ndcg@10" in table[0]
        assert table[2].startswith("two-stage ")
        assert "1.0000 to 1.0000" in table[2]
        assert any(line.startswith("two-stage - recent-popular  ") and "+1.0000" in line for line in lines)
        assert any(line.startswith("- 1 of 3 test users have no history in train; ") for line in lines)


@pytest.fixture(scope="module")
def data():
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    return Dataset(name="synthetic", interactions=made.interactions, items=made.items, users=made.users)


@pytest.fixture(scope="module")
def folder(data, config, tmp_path_factory):
    """A whole run, and its results folder."""
    out = tmp_path_factory.mktemp("bench") / "results"
    run_bench(data, config, out=out)
    return ResultFolder(out)


@pytest.fixture(scope="module")
def result(folder):
    return folder.result


def test_a_reference_is_the_only_one_that_is_compared(data):
    names = ["popular", "item-knn", "recent-popular"]
    table = run_bench(data, systems=names, reference="item-knn", n_samples=20).tables[0]
    found = [(part.system, part.other) for part in table.differences]
    assert found == [("item-knn", "popular"), ("item-knn", "recent-popular")]
    with pytest.raises(InvalidConfig, match="reference 'best' is none of the systems popular, item-knn"):
        run_bench(data, systems=names, reference="best")


class TestRun:
    def test_all_systems_stand_in_the_table(self, result):
        (table,) = result.tables
        assert table.protocol == "new items only"
        names = [row.system for row in table.rows]
        assert names == [
            "popular",
            "recent-popular",
            "item-knn",
            "two-stage: bi-encoder",
            "two-stage: retrieval",
            "two-stage",
        ]
        for row in table.rows:
            ndcg = row.metrics["ndcg@10"]
            assert 0 <= ndcg.low <= ndcg.mean <= ndcg.high <= 1
            candidates = row.metrics["candidate_recall@100"]
            assert row.metrics["recall@10"].mean <= candidates.mean <= 1
            assert candidates.low <= candidates.mean <= candidates.high
            assert (row.metrics["ceiling"].mean is not None) == (row.system == "two-stage")
            assert row.fit_seconds > 0
            assert row.users_per_second > 0
            assert row.peak_mb > 10
        assert len(table.differences) == 5 + 1

    def test_our_rows_share_one_fit_and_its_candidates(self, result):
        stage1, both = result.tables[0].rows[-2:]
        assert stage1.fit_seconds == both.fit_seconds
        for name in ("candidate_recall@100", "cold_recall@100"):
            assert stage1.metrics[name] == both.metrics[name]
        assert both.metrics["ceiling"].mean >= both.metrics["candidate_recall@100"].mean

    def test_a_row_is_the_systems_own_lists(self, data, config, result):
        prepared = prepare(data, config)
        popular = ask_baselines(prepared)[0]
        hits = metrics.hit_matrix(popular.lists, prepared.protocols[0].truth, 10)
        assert result.tables[0].rows[0].metrics["ndcg@10"].mean == pytest.approx(metrics.ndcg(hits, 10).mean())
        assert popular.lists["rank"].max() == 20

    def test_the_dictionary_is_json_and_complete(self, result):
        again = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert again["dataset"] == "synthetic"
        assert again["split"] == "time"
        assert again["config"]["n_interest"] == 4
        assert again["tables"][0]["rows"][5]["system"] == "two-stage"
        assert {"python", "torch", "polars"} <= set(again["versions"])
        assert any(note.startswith("windows: ") for note in again["notes"])

    def test_what_is_written_is_what_is_read(self, folder, result):
        assert BenchResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
        assert read_result(folder.path / "result.json") == result
        assert folder.per_user.columns == ["protocol", "cut", "system", "user_id", *result.user_metrics]
        means = folder.per_user.filter(system="two-stage")["ndcg@10"].mean()
        assert means == pytest.approx(result.tables[0].rows[-1].metrics["ndcg@10"].mean)
        assert folder.lists.columns == ["protocol", "cut", "system", "user_id", "item_id", "rank", "score"]
        assert folder.candidates["system"].unique().to_list() == ["two-stage"]
        assert folder.candidates["source"].str.contains("vector").any()
        assert folder.truth.height == result.tables[0].n_pairs

    def test_segments_add_up_and_the_gap_is_theirs(self, result):
        (table,) = result.tables
        for name in ("items", "item popularity", "history length", "user: favourite_topic"):
            parts = [part for part in table.segments if (part.segment, part.system) == (name, "two-stage")]
            assert sum(part.n_pairs for part in parts) == table.n_pairs
        gap = next(row for row in table.fairness if (row.kind, row.system) == ("metric gap", "popular"))
        values = [
            part.metrics["ndcg@10"].mean
            for part in table.segments
            if (part.segment, part.system) == (gap.segment, "popular")
        ]
        assert gap.value == pytest.approx(max(values) - min(values))
        exposure = [
            row.value
            for row in table.fairness
            if (row.kind, row.segment, row.system) == ("exposure", "item popularity", "popular")
        ]
        assert sum(exposure) == pytest.approx(1)

    def test_repeats_bring_a_second_table_and_buy_again(self, config):
        taken = np.random.default_rng(0).integers(12, size=300)
        data = dataset_of([(f"u{turn % 30}", "abcdefghijkl"[item]) for turn, item in enumerate(taken)], "abcdefghijkl")
        tables = run_bench(data, config, split="leave-last-out", min_items=2, n_samples=50).tables
        counted, new = ([row.system for row in table.rows] for table in tables)
        assert [table.protocol for table in tables] == ["repeats counted", "new items only"]
        assert set(counted) - set(new) == {"buy-again"}
        assert len(counted) == 7


class TestProfiling:
    def test_seconds_and_memory_of_a_block(self):
        """In a process of its own: what other tests leave behind may be freed meanwhile."""
        work = """
            import time
            import numpy as np
            from recsys.profiling import metered

            def work():
                held = np.ones(200_000_000 // 8)
                time.sleep(0.2)  # longer than the meter's pause between two looks
                return held.size

            before = metered(lambda: None)[1].peak_mb
            size, usage = metered(work)
            print(size, usage.peak_mb - before, usage.seconds)
        """
        ran = subprocess.run([sys.executable, "-c", textwrap.dedent(work)], capture_output=True, text=True, check=True)
        size, more, seconds = map(float, ran.stdout.split())
        assert size == 200_000_000 // 8
        assert more > 100
        assert 0.2 <= seconds < 30

    def test_what_the_work_raises_is_raised(self):
        with pytest.raises(ZeroDivisionError):
            metered(lambda: 1 / 0)

    def test_the_fallback_is_the_peak_of_the_process(self):
        assert _lifetime_peak_mb() >= metered(lambda: None)[1].peak_mb * 0.9
