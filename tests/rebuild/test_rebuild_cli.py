"""The command, its exit codes and its signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys import Recommender
from recsys.config import config_from_dict
from recsys.rebuild.cli import main
from recsys.rebuild.store import Store
from recsys.synthetic import generate


@pytest.fixture(scope="module")
def tables(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables and a saved model."""
    folder = tmp_path_factory.mktemp("tables")
    data = generate(n_users=60, n_items=80, n_topics=4, events_per_user=12, n_cold_items=4)
    config = config_from_dict(
        {
            "encoder": {"model": tiny_bert},
            "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
            "n_interest": 0,
            "probabilities": False,
            "device": "cpu",
            "progress": False,
        }
    )
    Recommender(config).fit(data.interactions, data.items).save(folder / "model")
    data.interactions.write_parquet(folder / "interactions.parquet")
    data.items.write_parquet(folder / "items.parquet")
    changed = data.items.with_columns(title=pl.col("title") + " anew")
    changed.write_parquet(folder / "changed.parquet")
    return folder


@pytest.fixture
def store(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    place = str(tmp_path / "store")
    assert main(["init", "--store", place, "--model", str(tables / "model")]) == 0
    assert "live: " in capsys.readouterr().out
    return place


def arguments(store: str, tables: Path, items: str = "items") -> list[str]:
    given = ["--interactions", str(tables / "interactions.parquet"), "--items", str(tables / f"{items}.parquet")]
    return ["run", "--store", store, *given]


def test_run_status_verify_rollback_prune(
    store: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "recsys.prom"
    assert main([*arguments(store, tables), "--json", "--metrics", str(metrics)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["outcome"], result["counts"]["encoded"]) == ("promoted", 0)
    assert metrics.is_file()
    assert main([*arguments(store, tables), "--noop-exit-code", "99"]) == 99
    assert "unchanged" in capsys.readouterr().out
    assert main(["status", "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["current"]["version"] == result["version"]
    assert main(["verify", "--store", store]) == 0
    assert main(["rollback", "--store", store]) == 0
    assert main(["prune", "--store", store, "--keep", "1"]) == 0


@pytest.mark.usefixtures("no_other_process")
def test_exit_codes(store: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Store.open(Path(store)).current()
    config = tmp_path / "strict.toml"
    config.write_text("[gates]\nmin_items = 1.5\n")
    assert main([*arguments(store, tables, "changed"), "--config", str(config)]) == 3
    assert "gate items: 1.0 is not 1.5 to 2.0" in capsys.readouterr().err
    config.write_text("[gates]\nmin_item = 1.5\n")
    assert main([*arguments(store, tables), "--config", str(config)]) == 2
    assert "did you mean gates.min_items" in capsys.readouterr().err
    assert main([*arguments(store, tables), "--config", str(tmp_path / "absent.toml")]) == 2
    assert main([*arguments(store, tables), "--as-of", "yesterday"]) == 2
    assert main([*arguments(store, tables), "--as-of", "1999-01-01"]) == 65
    assert main(arguments(store, tables, "absent")) == 65
    assert main(arguments(str(tmp_path / "nowhere"), tables)) == 69
    with Store.open(Path(store)).lock("another"):
        assert main(arguments(store, tables)) == 75
    assert Store.open(Path(store)).current() == before


def test_status_in_ruins(store: str, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (version,) = Store.open(Path(store)).versions()
    manifest = Store.open(Path(store)).bundle(version) / "MANIFEST.json"
    for content in (b"half", b""):
        manifest.write_bytes(content)
        assert main(["status", "--store", store, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["versions"], found["refused"]) == ([version], [])


@pytest.mark.usefixtures("no_other_process")
def test_a_refused_run_tells_its_gates(
    store: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, config = tmp_path / "recsys.prom", tmp_path / "strict.toml"
    asked = [*arguments(store, tables), "--json", "--metrics", str(metrics)]
    assert main(asked) == 0
    success = metrics.read_text().splitlines()[0]
    config.write_text("[gates]\nmin_items = 1.5\n")
    capsys.readouterr()
    assert main([*asked, "--force", "--config", str(config)]) == 3
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["outcome"], result["gates"][0]["name"], result["gates"][0]["passed"]) == ("refused", "items", False)
    assert "gate items: 1.0 is not 1.5 to 2.0" in err
    lines = metrics.read_text().splitlines()
    assert lines[:2] == [success, "recsys_rebuild_promoted 0"]
    assert 'recsys_rebuild_gate{gate="items"} 1.0' in lines


def test_where_the_metrics_cannot_go_nothing_is_built(
    store: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Store.open(Path(store)).current()
    assert main([*arguments(store, tables, "changed"), "--metrics", str(tmp_path / "absent" / "x.prom")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert Store.open(Path(store)).current() == before


@pytest.mark.usefixtures("no_other_process")
def test_a_deleted_person_is_gone_and_a_receipt_says_so(
    store: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*command: str) -> Any:
        assert main([*command, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    interactions = pl.read_parquet(tables / "interactions.parquet")
    person = interactions["user_id"][0]
    rows = interactions.filter(pl.col("user_id") == person).height
    interactions.filter(pl.col("user_id") != person).write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "people.txt").write_text(f"{person}\nnobody\n")
    asked = ["receipt", "--store", store, "--users", str(tmp_path / "people.txt")]
    first = told(*asked)
    assert first["users"] == 2
    assert [(one["live"], one["users"], one["interactions"]) for one in first["versions"]] == [(True, 1, rows)]
    given = ["--interactions", str(tmp_path / "interactions.parquet"), "--items", str(tables / "items.parquet")]
    result = told("run", "--store", store, *given)
    assert result["counts"]["forgotten"] == 1
    assert told("verify", "--store", store)["metadata"]["counts"]["forgotten"] == 1
    left = Path(store) / "staging" / "run-cut-off"
    left.mkdir()
    interactions.head(9).write_parquet(left / "histories.parquet")
    found = told(*asked)["versions"][-1]
    assert (found["version"], found["live"]) == ("staging/run-cut-off", False)
    assert found["interactions"] == interactions.head(9).filter(pl.col("user_id") == person).height > 0
    assert main(["prune", "--store", store]) == 0
    capsys.readouterr()
    old, new = told(*asked)["versions"]
    assert (new["version"], new["live"], new["users"], new["interactions"]) == (result["version"], True, 0, 0)
    assert (old["live"], old["interactions"]) == (False, rows)
    assert main(asked) == 0
    assert f"{result['version']} (live): 0 of 2 users, 0 interactions, 0 rows of attributes" in capsys.readouterr().out
    given[-1] = str(tables / "changed.parquet")
    assert main(["run", "--store", store, *given]) == 0  # one more night, and nothing is left of him
    assert main(["prune", "--store", store, "--keep", "0"]) == 0
    for path in Path(store).rglob("*"):
        if path.suffix == ".parquet":
            for column in pl.read_parquet(path).select(pl.col(pl.String)):
                assert person not in column.to_list(), path
        elif path.is_file():
            assert str(person).encode() not in path.read_bytes(), path


def test_a_receipt_needs_a_live_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Store.create(tmp_path / "empty").root
    (tmp_path / "people.txt").write_text("ada\n")
    assert main(["receipt", "--store", str(place), "--users", str(tmp_path / "people.txt")]) == 69
    assert "has no live version yet; recsys-rebuild init makes the first" in capsys.readouterr().err


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_what_is_live_and_the_next_run_resumes(
    store: str, tables: Path, sent: signal.Signals, code: int
) -> None:
    before = Store.open(Path(store)).current()
    script = (  # stops where the vectors are made and nothing is published yet
        "import signal, sys, time, recsys.rebuild.job as job\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a suite in the background ignores it
        "def wait(*_): print('here', flush=True); time.sleep(60)\n"
        "job.judge = wait\n"
        "from recsys.rebuild.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *arguments(store, tables, "changed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        time.sleep(0.1)
        process.send_signal(sent)
        assert process.wait(120) == code
    opened = Store.open(Path(store))
    assert opened.current() == before
    assert main([*arguments(store, tables, "changed")]) == 0
    version = opened.current()
    assert version is not None
    assert opened.verify().metadata["counts"]["encoded"] == 0
