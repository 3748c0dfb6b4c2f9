from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ranking.ranker import MAX_GROUP, Ranker, RankerConfig, check_groups, group_sizes

CONFIG = RankerConfig(n_trees=20, early_stopping=5, min_leaf_rows=5, n_threads=1)
THREE = replace(CONFIG, n_seeds=3)
FEATURES = ["noise", "planted", 'size [cm], "raw": {a b}', "flag"]


def rows_of(n_users: int = 60, n_items: int = 10, seed: int = 0) -> pl.DataFrame:
    """Users who take one item each, and `planted` gives it away."""
    rng = np.random.default_rng(seed)
    n = n_users * n_items
    frame = pl.DataFrame(
        {
            "user_row": np.repeat(np.arange(n_users, dtype=np.int32), n_items),
            "noise": rng.normal(size=n),
            "planted": rng.random(n),
            FEATURES[2]: rng.normal(size=n),
            "flag": rng.random(n) < 0.5,
        }
    )
    taken = pl.int_range(pl.len()).over("user_row") == pl.col("user_row") % n_items
    return frame.with_columns(label=taken.cast(pl.Int8), planted=pl.col("planted") + taken)


def labelled(labels: list[float | None], users: list[int] | None = None) -> pl.DataFrame:
    return pl.DataFrame({"user_row": users or [0] * len(labels), "label": pl.Series(labels, dtype=pl.Float64)})


@pytest.fixture(scope="module")
def fitted():
    return Ranker(CONFIG, seed=1).fit(rows_of(), rows_of(20, seed=5), FEATURES)


def share_on_top(ranker: Ranker, rows: pl.DataFrame) -> float:
    """Share of users whose taken item has the highest score."""
    scored = rows.with_columns(score=ranker.predict(rows))
    top = scored.filter(pl.col("score") == pl.col("score").max().over("user_row"))
    return top["label"].sum() / rows["user_row"].n_unique()


class TestFit:
    def test_learns_a_planted_feature(self, fitted):
        assert share_on_top(fitted, rows_of(40, seed=9)) > 0.9

    def test_without_validation_grows_every_tree(self):
        ranker = Ranker(CONFIG, seed=1).fit(rows_of(), None, FEATURES)
        assert ranker.n_trees == CONFIG.n_trees
        assert share_on_top(ranker, rows_of(40, seed=9)) > 0.9

    def test_learns_from_a_row_as_much_as_it_weighs(self):
        """Two thirds of the users take what `planted` is low for; they count where nothing else is said."""
        odd = pl.col("user_row") % 3 > 0
        rows = rows_of(90).with_columns(planted=pl.when(odd).then(2.0 - pl.col("planted")).otherwise(pl.col("planted")))
        weighed = rows.with_columns(weight=pl.when(odd).then(0.0).otherwise(1.0))
        asked = rows_of(40, seed=9)
        assert share_on_top(Ranker(CONFIG, seed=1).fit(rows, None, FEATURES), asked) < 0.2
        assert share_on_top(Ranker(CONFIG, seed=1).fit(weighed, None, FEATURES), asked) > 0.9

    def test_equal_weights_are_none(self):
        rows = rows_of().with_columns(weight=pl.lit(7.0))
        same, none = (Ranker(CONFIG, seed=1).fit(part, None, FEATURES) for part in (rows, rows.drop("weight")))
        np.testing.assert_array_equal(same.predict(rows), none.predict(rows))

    def test_grows_as_many_trees_as_asked(self):
        assert Ranker(CONFIG, seed=1).fit(rows_of(), None, FEATURES, n_trees=7).n_trees == 7

    def test_a_rising_feature_never_lowers_a_score(self):
        rows = rows_of().with_columns(planted=-pl.col("planted"))
        free = Ranker(CONFIG, seed=1).fit(rows, None, FEATURES)
        risen = Ranker(replace(CONFIG, rising=("planted",)), seed=1).fit(rows, None, FEATURES)
        ladder = pl.concat([rows.head(1)] * 50).with_columns(planted=pl.Series(np.linspace(-2.0, 0.0, 50)))
        assert (np.diff(free.predict(ladder)) < 0).any()
        assert (np.diff(risen.predict(ladder)) >= 0).all()

    def test_stops_early_and_predicts_with_the_best_trees_only(self):
        config = replace(CONFIG, n_trees=200)
        validation = rows_of(20, seed=5)
        noisy = validation.with_columns(label=pl.col("label").shuffle(seed=0).over("user_row"))
        ranker = Ranker(config, seed=1).fit(rows_of(), noisy, FEATURES)
        assert ranker.n_trees == ranker._boosters[0].best_iteration < 200
        assert ranker._boosters[0].num_trees() <= ranker._boosters[0].best_iteration + config.early_stopping

    def test_the_same_seed_gives_the_same_scores_and_another_other_ones(self, fitted):
        rows = rows_of(10, seed=3)
        again, other = (Ranker(CONFIG, seed=seed).fit(rows_of(), rows_of(20, seed=5), FEATURES) for seed in (1, 2))
        np.testing.assert_array_equal(again.predict(rows), fitted.predict(rows))
        assert not np.array_equal(other.predict(rows), fitted.predict(rows))

    def test_reads_nulls(self):
        rows = rows_of().with_columns(noise=pl.lit(None, dtype=pl.Float32))
        ranker = Ranker(CONFIG, seed=1).fit(rows, None, FEATURES)
        assert share_on_top(ranker, rows) > 0.9

    def test_of_constant_features_says_that_nothing_was_learnt(self):
        rows = rows_of().with_columns(planted=pl.lit(1.0))
        ranker = Ranker(CONFIG, seed=1)
        with pytest.raises(RuntimeError, match="600 rows with 1 features gave every row the same score"):
            ranker.fit(rows, None, ["planted"])
        with pytest.raises(RuntimeError, match="not fitted"):
            ranker.predict(rows)

    def test_of_too_few_rows_says_that_nothing_was_learnt(self):
        with pytest.raises(RuntimeError, match="lower min_leaf_rows or bring more users with labels"):
            Ranker(RankerConfig(n_threads=1), seed=1).fit(rows_of(3), None, FEATURES)

    def test_refuses_a_missing_feature_in_either_table(self):
        for train, validation in ((rows_of().drop("flag"), rows_of()), (rows_of(), rows_of().drop("flag"))):
            with pytest.raises(ValueError, match=r"1 feature columns are missing, first: \['flag'\]"):
                Ranker(CONFIG, seed=1).fit(train, validation, FEATURES)

    def test_refuses_no_features(self):
        with pytest.raises(ValueError, match="there are no features"):
            Ranker(CONFIG, seed=1).fit(rows_of(), rows_of(), [])

    def test_that_is_refused_leaves_the_earlier_fit_in_place(self):
        ranker = Ranker(CONFIG, seed=1).fit(rows_of(), None, FEATURES)
        before = ranker.predict(rows_of())
        with pytest.raises(ValueError, match="no user has both"):
            ranker.fit(rows_of(), rows_of().with_columns(label=pl.lit(0)), ["noise"])
        np.testing.assert_array_equal(ranker.predict(rows_of()), before)


class TestPredict:
    def test_gives_one_double_a_row_whatever_else_the_table_holds(self, fitted):
        rows = rows_of(4)
        scores = fitted.predict(rows.select(reversed(rows.columns)).with_columns(more=pl.lit("x")))
        assert scores.dtype == np.float64
        np.testing.assert_array_equal(scores, fitted.predict(rows))

    def test_scores_a_row_alike_alone_and_among_others(self, fitted):
        rows = rows_of(3)
        alone = np.concatenate([fitted.predict(rows[place]) for place in range(rows.height)])
        np.testing.assert_array_equal(alone, fitted.predict(rows))

    def test_of_no_rows_is_empty(self, fitted):
        assert fitted.predict(rows_of().head(0)).shape == (0,)

    def test_refuses_a_missing_feature(self, fitted):
        with pytest.raises(ValueError, match=r"2 feature columns are missing, first: \['noise', 'flag'\]"):
            fitted.predict(rows_of().drop("noise", "flag"))


def test_what_needs_a_fit_says_so(tmp_path):
    ranker = Ranker(CONFIG, seed=1)
    for ask in (lambda: ranker.predict(rows_of()), lambda: ranker.save(tmp_path)):
        with pytest.raises(RuntimeError, match="not fitted; call fit or load first"):
            ask()


class TestFiles:
    def test_a_loaded_ranker_gives_the_same_scores(self, fitted, tmp_path):
        fitted.save(tmp_path / "ranker")
        loaded = Ranker.load(tmp_path / "ranker", CONFIG, seed=1)
        np.testing.assert_array_equal(loaded.predict(rows_of(seed=3)), fitted.predict(rows_of(seed=3)))
        assert loaded.features == FEATURES

    def test_are_text_and_json(self, fitted, tmp_path):
        fitted.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["features.json", "model.txt"]

    def test_hold_the_best_trees_only_and_can_be_saved_again(self, tmp_path):
        config = replace(CONFIG, n_trees=200)
        noisy = rows_of(20, seed=5).with_columns(label=pl.col("label").shuffle(seed=0).over("user_row"))
        ranker = Ranker(config, seed=1).fit(rows_of(), noisy, FEATURES)
        ranker.save(tmp_path / "first")
        loaded = Ranker.load(tmp_path / "first", config, seed=1)
        loaded.save(tmp_path / "second")
        again = Ranker.load(tmp_path / "second", config, seed=1)
        for other in (loaded, again):
            np.testing.assert_array_equal(other.predict(rows_of()), ranker.predict(rows_of()))


@pytest.fixture(scope="module")
def together():
    return Ranker(THREE, seed=1).fit(rows_of(), rows_of(20, seed=5), FEATURES)


@pytest.fixture(scope="module")
def apart():
    return [Ranker(CONFIG, seed=seed).fit(rows_of(), rows_of(20, seed=5), FEATURES) for seed in (1, 2, 3)]


class TestSeveralSeeds:
    def test_give_the_mean_of_their_scores_and_contributions(self, together, apart):
        rows = rows_of(10, seed=3)
        np.testing.assert_array_equal(together.predict(rows), np.mean([one.predict(rows) for one in apart], axis=0))
        parts = together.contributions(rows)
        np.testing.assert_array_equal(parts, np.mean([one.contributions(rows) for one in apart], axis=0))
        np.testing.assert_allclose(parts.sum(axis=1), together.predict(rows), atol=1e-6)

    def test_have_the_mean_number_of_trees(self, together, apart):
        assert together.n_trees == round(np.mean([one.n_trees for one in apart]))

    def test_are_saved_and_loaded(self, together, tmp_path):
        together.save(tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["features.json", "model-1.txt", "model-2.txt", "model.txt"]
        loaded = Ranker.load(tmp_path, THREE, seed=1)
        np.testing.assert_array_equal(loaded.predict(rows_of(seed=3)), together.predict(rows_of(seed=3)))

    def test_are_one_at_least(self):
        with pytest.raises(ValueError, match=r"counts must be at least 1 .*n_seeds=0"):
            RankerConfig(n_seeds=0)


class TestCheckGroups:
    @pytest.mark.parametrize("label", [None, float("nan"), -1.0, 31.0, 0.5, float("inf")])
    def test_refuses_labels_that_are_no_grades(self, label):
        with pytest.raises(ValueError, match="1 labels are not whole numbers from 0 to 30, first: "):
            check_groups(labelled([1.0, 0.0, label]))

    def test_takes_the_largest_grade_and_any_number_type(self):
        check_groups(labelled([30.0, 0.0]))
        check_groups(pl.DataFrame({"user_row": [3, 3], "label": pl.Series([1, 0], dtype=pl.Int8)}))

    def test_refuses_no_rows(self):
        with pytest.raises(ValueError, match="there are no labelled rows to train on"):
            check_groups(labelled([]))

    def test_refuses_rows_of_one_user_apart(self):
        with pytest.raises(ValueError, match="rows of one user must lie together; sort by user_row first"):
            check_groups(labelled([1, 0, 1, 0], [0, 1, 1, 0]))

    @pytest.mark.parametrize(
        ("labels", "users"), [([0, 0, 0], [0, 0, 1]), ([1, 1, 1], [0, 0, 0]), ([1, 0, 1], [0, 1, 2])]
    )
    def test_refuses_groups_in_which_nothing_is_preferred(self, labels, users):
        with pytest.raises(ValueError, match="no user has both a taken and another candidate"):
            check_groups(labelled(labels, users))

    def test_refuses_a_group_longer_than_lightgbm_takes(self):
        check_groups(labelled([1.0] + [0.0] * (MAX_GROUP - 1)))
        with pytest.raises(ValueError, match="a user has 10001 candidates, LightGBM takes at most 10000"):
            check_groups(labelled([1.0] + [0.0] * MAX_GROUP))

    def test_group_sizes_follow_the_rows(self):
        assert group_sizes(labelled([0] * 6, [7, 7, 2, 5, 5, 5])).tolist() == [2, 1, 3]

    def test_is_asked_for_both_tables(self):
        for train, validation in ((labelled([]), rows_of()), (rows_of(), rows_of().with_columns(label=pl.lit(99)))):
            with pytest.raises(ValueError, match=r"no labelled rows|600 labels are not whole numbers"):
                Ranker(CONFIG, seed=0).fit(train, validation, FEATURES)


class TestConfig:
    @pytest.mark.parametrize("name", ["n_trees", "early_stopping", "min_leaf_rows", "truncation", "n_leaves"])
    def test_refuses_empty_counts(self, name):
        with pytest.raises(ValueError, match="counts must be at least 1 and n_leaves at least 2"):
            RankerConfig(**{name: 0})

    @pytest.mark.parametrize("wrong", [{"feature_fraction": 0.0}, {"row_fraction": 1.1}, {"learning_rate": 0.0}])
    def test_refuses_fractions_outside_their_range(self, wrong):
        with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\] and learning_rate above 0"):
            RankerConfig(**wrong)

    @pytest.mark.parametrize("wrong", [{"l2": -1.0}, {"n_threads": -1}])
    def test_refuses_negative_values(self, wrong):
        with pytest.raises(ValueError, match="l2 and n_threads must be 0 or more"):
            RankerConfig(**wrong)
