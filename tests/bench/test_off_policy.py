import json

import numpy as np
import polars as pl
import pytest

from recsys.bench.cli import main
from recsys.bench.off_policy import off_policy, render
from recsys.errors import InvalidConfig, InvalidData

N_ITEMS = 8
CHANCE = np.linspace(0.05, 0.4, N_ITEMS)  # of a reward, by item


def logged(n: int, seed: int, *, logging: np.ndarray) -> pl.DataFrame:
    """One item an impression, drawn from `logging`; two impressions a user."""
    rng = np.random.default_rng(seed)
    item = rng.choice(N_ITEMS, size=n, p=logging)
    return pl.DataFrame(
        {
            "impression_id": np.arange(n),
            "user_id": np.arange(n) // 2,
            "item_id": item,
            "reward": rng.random(n) < CHANCE[item],
            "propensity": logging[item],
        }
    )


def policy_of(shares: np.ndarray, impressions: pl.Series) -> pl.DataFrame:
    items = pl.DataFrame({"item_id": np.arange(N_ITEMS), "probability": shares})
    return impressions.unique().sort().to_frame().join(items, how="cross")


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values)
    return shares / shares.sum()


LOGGING = softmax(-4 * CHANCE)
NEW = softmax(8 * CHANCE)
TRUTH = float(NEW @ CHANCE)


def test_estimates_are_unbiased_over_many_logs():
    errors = []
    for seed in range(40):
        log = logged(1000, seed, logging=LOGGING)
        found = off_policy(log, policy_of(NEW, log["impression_id"]), n_samples=1, seed=seed).estimates
        errors.append([found[name].value - TRUTH for name in ("ips", "snips", "dr")])
    mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0) / np.sqrt(40)
    assert (np.abs(mean) < 3.5 * spread + 0.002).all()
    # The log's own value is far from the truth, so the estimators did something.
    assert abs(LOGGING @ CHANCE - TRUTH) > 20 * np.abs(mean).max()


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = []
    for seed in range(60):
        log = logged(600, 100 + seed, logging=LOGGING)
        found = off_policy(log, policy_of(NEW, log["impression_id"]), n_samples=200, seed=seed).estimates
        held.append([value.low <= TRUTH <= value.high for value in found.values()])
    assert (np.mean(held, axis=0) >= 0.85).all()


def test_values_equal_a_loop():
    log = logged(200, 3, logging=LOGGING)
    report = off_policy(log, policy_of(NEW, log["impression_id"]), n_samples=2)
    weights = [NEW[item] / LOGGING[item] for item in log["item_id"]]
    paid = sum(w * r for w, r in zip(weights, log["reward"], strict=True))
    assert report.estimates["ips"].value == pytest.approx(paid / 200)
    assert report.estimates["snips"].value == pytest.approx(paid / sum(weights))
    assert report.effective_rows == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    assert report.logged == pytest.approx(log["reward"].mean())


def test_the_logging_policy_itself_is_worth_what_was_logged():
    log = logged(500, 4, logging=LOGGING)
    report = off_policy(log, policy_of(LOGGING, log["impression_id"]), n_samples=50)
    for name in ("ips", "snips"):
        assert report.estimates[name].lift == pytest.approx(0)
    assert report.effective_share == pytest.approx(1)
    assert report.warnings == ()


def test_whole_slates_give_the_exact_value():
    """Everything was shown for certain: a policy that shows one item of each slate is worth the mean of its rewards."""
    rng = np.random.default_rng(0)
    log = pl.DataFrame({"impression_id": np.repeat(np.arange(100), N_ITEMS), "item_id": list(range(N_ITEMS)) * 100})
    log = log.with_columns(reward=pl.Series(rng.random(800) < 0.3), propensity=1.0)
    one = log.filter(pl.col("item_id") == 5).select("impression_id", "item_id", probability=1.0)
    report = off_policy(log, one, n_samples=10)
    expected = log.filter(pl.col("item_id") == 5)["reward"].mean()
    assert report.estimates["ips"].value == pytest.approx(expected)
    assert report.estimates["snips"].value == pytest.approx(expected)
    assert report.estimates["dr"].value == pytest.approx(expected)
    assert (report.shown_logged, report.shown_new) == (N_ITEMS, 1)


def test_doubly_robust_varies_less_where_the_item_tells_the_reward():
    errors = []
    for seed in range(30):
        log = logged(500, seed, logging=LOGGING).with_columns(reward=1.0 + pl.col("item_id") / 10)
        found = off_policy(log, policy_of(NEW, log["impression_id"]), n_samples=1).estimates
        errors.append([found["ips"].value, found["dr"].value])
    ips, dr = np.std(errors, axis=0)
    assert dr < ips / 5


def test_a_policy_outside_the_log_is_warned_of():
    log = logged(2000, 5, logging=np.array([0.5, 0.5, 0, 0, 0, 0, 0, 0]))
    report = off_policy(log, policy_of(NEW, log["impression_id"]))
    assert any("the weights have the mean" in warning for warning in report.warnings)
    rare = logged(300, 6, logging=softmax(-30 * CHANCE))
    report = off_policy(rare, policy_of(softmax(30 * CHANCE), rare["impression_id"]), n_samples=50)
    assert any("little overlap" in warning for warning in report.warnings)
    assert any("rewarded rows" in warning for warning in report.warnings)
    assert "WARNING" in render(report)


def test_one_heavy_row_is_warned_of():
    log = logged(300, 8, logging=np.full(N_ITEMS, 1 / N_ITEMS))
    log = log.with_columns(propensity=pl.when(pl.col("impression_id") == 7).then(1e-4).otherwise(pl.col("propensity")))
    report = off_policy(log, policy_of(np.full(N_ITEMS, 1 / N_ITEMS), log["impression_id"]), n_samples=20)
    assert any("one row carries" in warning for warning in report.warnings)


def test_clipping_bounds_the_weights_and_says_so():
    log = logged(500, 7, logging=LOGGING)
    report = off_policy(log, policy_of(NEW, log["impression_id"]), clip=2.0, n_samples=10)
    assert report.max_weight == 2.0
    assert report.n_clipped > 0
    assert any("were clipped" in warning for warning in report.warnings)


def test_a_policy_by_user_and_the_order_of_rows():
    log = logged(400, 9, logging=LOGGING)
    by_impression = off_policy(log, policy_of(NEW, log["impression_id"]), n_samples=20)
    by_user = off_policy(log.sample(fraction=1, shuffle=True, seed=1), policy_of(NEW, log["user_id"]), n_samples=20)
    for name, value in by_impression.estimates.items():
        assert by_user.estimates[name].value == pytest.approx(value.value)
        assert by_user.estimates[name].low == pytest.approx(value.low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": 0.0}, r"log\.propensity: is the probability of having been shown"),
        ({"propensity": None}, r"log\.propensity"),
        ({"reward": float("nan")}, r"log\.reward: must be a finite number"),
        ({"reward": "yes"}, r"log\.reward: must be a finite number"),
        ({"item_id": 1, "impression_id": 0}, r"log\.item_id: an item must stand once in an impression"),
    ],
)
def test_logs_that_break_a_rule(change, message):
    log = logged(50, 0, logging=LOGGING)
    policy = policy_of(NEW, log["impression_id"])
    log = log.with_columns(**{name: pl.lit(value, log[name].dtype if name != "reward" else None)
                              for name, value in change.items()})  # fmt: skip
    with pytest.raises(InvalidData, match=message):
        off_policy(log, policy)


def test_an_impression_of_two_users():
    log = logged(50, 0, logging=LOGGING).with_columns(impression_id=0, item_id=pl.col("impression_id"))
    with pytest.raises(InvalidData, match=r"log\.impression_id: an impression must belong to one user"):
        off_policy(log, policy_of(NEW, log["impression_id"]))


def test_tables_that_break_a_rule():
    log = logged(50, 0, logging=LOGGING)
    policy = policy_of(NEW, log["impression_id"])
    with pytest.raises(InvalidData, match=r"log\.propensity: the required column is missing"):
        off_policy(log.drop("propensity"), policy)
    with pytest.raises(InvalidData, match="log: must not be empty"):
        off_policy(log.clear(), policy)
    with pytest.raises(InvalidData, match=r"policy\.probability: must lie in \[0, 1\]"):
        off_policy(log, policy.with_columns(probability=2.0))
    with pytest.raises(InvalidData, match=r"policy\.item_id: an item must stand once"):
        off_policy(log, pl.concat([policy, policy]))
    with pytest.raises(InvalidData, match=r"policy\.item_id: is String, in the log it is Int64"):
        off_policy(log, policy.with_columns(pl.col("item_id").cast(pl.String)))
    with pytest.raises(InvalidData, match="must say for every impression of the log"):
        off_policy(log, policy.filter(pl.col("impression_id") > 3))


def test_settings_out_of_range():
    log = logged(50, 0, logging=LOGGING)
    policy = policy_of(NEW, log["impression_id"])
    with pytest.raises(InvalidConfig, match="clip is 0"):
        off_policy(log, policy, clip=0)
    with pytest.raises(InvalidConfig, match="n_samples is 0"):
        off_policy(log, policy, n_samples=0)


def test_command(tmp_path, capsys):
    log = logged(200, 1, logging=np.full(N_ITEMS, 1 / N_ITEMS)).rename({"reward": "clicked"})
    log.drop("propensity").write_parquet(tmp_path / "log.parquet")
    policy_of(NEW, log["user_id"]).write_csv(tmp_path / "policy.csv")
    tables = ["--log", str(tmp_path / "log.parquet"), "--policy", str(tmp_path / "policy.csv")]
    given = ["off-policy", *tables, "--reward", "clicked"]
    assert main([*given, "--propensity", "0.125", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_rows"] == 200
    assert main([*given, "--propensity", "0.125"]) == 0
    assert "effective rows" in capsys.readouterr().out
    assert main([*given[:-1], "paid"]) == 65
    assert "log.paid: the required column is missing" in capsys.readouterr().err
    log.write_parquet(tmp_path / "log.parquet")
    assert main([*given, "--propensity", "0.125"]) == 2
    assert "the log has a column propensity" in capsys.readouterr().err
