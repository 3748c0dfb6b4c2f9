"""Logs of the trainings in the results folder, and numbers in trackers; W&B and MLflow are stood in for."""

import sys
from dataclasses import replace

import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from indexing.training_config import TrainingConfig
from recsys.bench import cli, read_result, run_bench
from recsys.bench.tracking import numbers_of, settings_of, track
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig
from recsys.synthetic import generate


@pytest.fixture(scope="module")
def data():
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    return Dataset(name="synthetic", interactions=made.interactions, items=made.items)


@pytest.fixture(scope="module")
def config(tiny_bert):
    return RecommenderConfig(
        encoder=EncoderConfig(model=tiny_bert),
        contrastive=ContrastiveConfig(encoder_steps=2, tower_max_steps=3),
        n_interest=0,
        probabilities=False,
        device="cpu",
        progress=False,
    )


@pytest.fixture(scope="module")
def folder(data, config, tmp_path_factory):
    """Results of a whole run with numbers in TensorBoard, and the same once more."""
    out = tmp_path_factory.mktemp("bench") / "results"
    for _ in range(2):
        run_bench(data, config, systems=["popular", "two-stage"], out=out, tracker="tensorboard", n_samples=20)
    return out


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: read.Scalars(tag)[-1].value for tag in read.Tags()["scalars"]}


def test_logs_of_the_trainings_are_in_the_results_folder(folder):
    trainings = {path.name for path in (folder / "logs" / "two-stage").iterdir()}
    assert trainings
    versions = next((folder / "logs" / "two-stage").iterdir())
    assert {"version_0", "version_1"} <= {path.name for path in versions.iterdir()}
    assert read_result(folder).config["training"]["log_folder"] is None


def test_numbers_stand_beside_them(folder):
    result, written = read_result(folder), scalars(folder / "logs")
    expected = numbers_of(result)
    assert written.keys() == expected.keys()
    assert written == pytest.approx(expected, rel=1e-5)
    ndcg = result.tables[0].rows[1].metrics["ndcg@10"]
    assert expected["new items only/two-stage/ndcg_at_10"] == ndcg.mean
    assert expected["new items only/two-stage/ndcg_at_10.high"] == ndcg.high


def test_a_log_folder_of_ones_own_is_kept(data, config, tmp_path):

    mine = replace(config, training=TrainingConfig(log_folder=str(tmp_path / "mine"), logger="csv"))
    run_bench(data, mine, systems=["two-stage"], out=tmp_path / "results", n_samples=20)
    assert any((tmp_path / "mine").iterdir())
    assert not (tmp_path / "results" / "logs").exists()


def test_rolling_cuts_have_logs_of_their_own(data, config, tmp_path):
    run_bench(data, config, systems=["two-stage: no text"], split="rolling", n_cuts=2, test_share=0.3,
              out=tmp_path / "results", n_samples=20)  # fmt: skip
    logs = {path.name for path in (tmp_path / "results" / "logs").iterdir()}
    assert logs == {"two-stage-no-text-cut-0", "two-stage-no-text-cut-1"}


class Fake:
    """Takes the calls of both trackers."""

    def __init__(self):
        self.calls = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.calls.append("end")

    def init(self, **given):
        self.calls.append(given)
        return self

    def start_run(self, **given):
        self.calls.append(given)
        return self

    def log(self, numbers):
        self.calls.append(numbers)

    log_metrics = log_params = log


def test_weights_and_biases(folder, monkeypatch):
    fake, result = Fake(), read_result(folder)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    track(result, "wandb")
    begun, numbers, end = fake.calls
    assert begun == {"project": "recsys-bench", "name": "synthetic", "config": settings_of(result)}
    assert numbers == numbers_of(result)
    assert end == "end"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    track(result, "wandb")
    assert fake.calls[3]["project"] == "mine"


def test_mlflow(folder, monkeypatch):
    fake, result = Fake(), read_result(folder)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    track(result, "mlflow")
    assert fake.calls == [{"run_name": "synthetic"}, settings_of(result), numbers_of(result), "end"]


def test_settings_say_what_was_measured(folder):
    result = read_result(folder)
    found = settings_of(result)
    assert (found["dataset"], found["test_hash"], found["config.n_interest"]) == ("synthetic", result.test_hash, "0")
    assert found["config.retriever.vector"] == "200"
    assert all(len(value) <= 500 for value in found.values())


def test_trackers_are_checked_before_the_work(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InvalidConfig, match=r"tracker wandb needs the package wandb, .*pip install wandb"):
        run_bench(data, systems=["no such system"], tracker="wandb")
    with pytest.raises(InvalidConfig, match="tensorboard writes into the results folder; name one with --out"):
        run_bench(data, systems=["no such system"], tracker="tensorboard")
    with pytest.raises(InvalidConfig, match="tracker 'excel' is unknown; there are: tensorboard, wandb, mlflow"):
        run_bench(data, systems=["no such system"], tracker="excel")


def test_command(data, config, tiny_bert, tmp_path, monkeypatch, capfd):
    data.interactions.write_parquet(tmp_path / "interactions.parquet")
    data.items.write_parquet(tmp_path / "items.parquet")
    (tmp_path / "config.toml").write_text(f'device = "cpu"\n[encoder]\nmodel = "{tiny_bert}"\n')
    words = ["run", "--data", str(tmp_path), "--config", str(tmp_path / "config.toml"), "--systems", "popular"]
    fake = Fake()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert cli.main([*words, "--samples", "5", "--quiet", "--track", "mlflow"]) == 0
    assert fake.calls[0] == {"run_name": tmp_path.name}
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert cli.main([*words, "--track", "mlflow"]) == 2
    assert "pip install mlflow" in capfd.readouterr().err
