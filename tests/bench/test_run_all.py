"""`make bench`: what it runs, what it keeps, and what it leaves out."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "run_all.py"
OLD = 1_000_000_000  # 2001: older than any file of a checkout


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """The script, with commands that write their results at once, and two data sets."""
    spec = importlib.util.spec_from_file_location("run_all", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []

    def run(command, check=False):
        out = Path(command[2] if command[1] == "report" else command[command.index("--out") + 1])
        if command[1] == "report":
            (out / "report.html").touch()
            return None
        module.ran.append(out)
        if out.suffix == ".json":
            out.touch()
        else:
            out.mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 3)

    for name in ("amazon-beauty", "oi-wiki-zh"):
        (tmp_path / "data" / name).mkdir(parents=True)
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def called(module, monkeypatch, *arguments):
    module.ran.clear()
    monkeypatch.setattr(sys, "argv", ["run_all.py", *arguments])
    module.main()
    return [str(path) for path in module.ran]


def test_goes_on_where_it_was(run_all, monkeypatch, capsys):
    assert called(run_all, monkeypatch) == ["results/amazon-beauty", "results/oi-wiki-zh"]
    assert "lctt-zh: left out, set RECSYS_DATA" in capsys.readouterr().err
    assert called(run_all, monkeypatch) == []
    assert "report.html: kept, it is newer than the code" in capsys.readouterr().err
    Path("results/oi-wiki-zh/report.html").unlink()
    os.utime("results/amazon-beauty/report.html", (OLD, OLD))
    assert called(run_all, monkeypatch) == ["results/amazon-beauty", "results/oi-wiki-zh"]


def test_quick_keeps_apart(run_all, monkeypatch):
    assert called(run_all, monkeypatch, "--quick") == ["results/quick/oi-wiki-zh"]
    assert called(run_all, monkeypatch) == ["results/amazon-beauty", "results/oi-wiki-zh"]


def test_stage_1_alone(run_all, monkeypatch):
    made = ["results/amazon-beauty-stage1.json", "results/amazon-beauty-cold-stage1.json"]
    assert called(run_all, monkeypatch, "--stage1") == made
    assert called(run_all, monkeypatch, "--stage1") == []


def test_a_failure_stops_it(run_all, monkeypatch):
    monkeypatch.setattr(run_all.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 65))
    with pytest.raises(SystemExit) as caught:
        called(run_all, monkeypatch)
    assert caught.value.code == 65
