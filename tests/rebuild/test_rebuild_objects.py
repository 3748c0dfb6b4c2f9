"""The command against a bucket, from init to prune, and two writers who race for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys import Recommender
from recsys.rebuild.cli import main
from recsys.rebuild.object_store import ObjectStore
from recsys.rebuild.watcher import BundleWatcher
from recsys.synthetic import Synthetic

pytest.importorskip("obstore", reason="obstore is not installed (recsys-twostage[object-store])")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

RACER = """
import sys
from contextlib import nullcontext
from recsys.rebuild import job
from recsys.rebuild.gates import GateResult

def meet(*_):
    print("ready", flush=True)
    sys.stdin.readline()
    return GateResult(name="reopen", value=1.0, limit="1.0", passed=True)

job.reader_process, job.reopened = nullcontext, meet
from recsys.rebuild.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def url(bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A place in the bucket; work folders lie under a home of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return f"s3://{bucket.name}/nightly"


@pytest.fixture
def tables(data: Synthetic, tmp_path: Path) -> Path:
    for name in ("interactions", "items", "users"):
        getattr(data, name).write_parquet(tmp_path / f"{name}.parquet")
    for number in (1, 2):
        data.items.with_columns(title=pl.col("title") + f" {number}").write_parquet(
            tmp_path / f"items-{number}.parquet"
        )
    (tmp_path / "easy.toml").write_text("[gates]\nmargin = 1.0\n")
    return tmp_path


def arguments(url: str, tables: Path, items: str = "items") -> list[str]:
    given = [f"--{name}={tables / file}.parquet" for name, file in
             (("interactions", "interactions"), ("items", items), ("users", "users"))]  # fmt: skip
    return ["run", "--store", url, *given, "--config", str(tables / "easy.toml")]


@pytest.mark.usefixtures("no_other_process")
def test_from_init_to_prune(
    url: str, tables: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*command: str, code: int = 0) -> Any:
        assert main([*command, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    first = told("init", "--store", url, "--model", str(model))["version"]
    result = told(*arguments(url, tables, "items-1"))
    assert (result["outcome"], result["counts"]["kept"]) == ("promoted", 0)
    assert told(*arguments(url, tables, "items-1"))["outcome"] == "unchanged"
    assert told("status", "--store", url)["current"]["version"] == result["version"]
    assert told("verify", "--store", url)["metadata"]["counts"]["encoded"] > 0
    elsewhere = ObjectStore.open(url, tmp_path / "another-host")
    watcher = BundleWatcher(elsewhere, device="cpu")
    people = watcher.recommender.users.head(2)
    assert watcher.recommender.recommend(people, 3).height == 6
    watcher.close()
    assert told("rollback", "--store", url)["version"] == first
    assert told(*arguments(url, tables, "items-1"))["outcome"] == "unchanged"  # what was gone back from stays away
    assert told("rollback", "--store", url, "--to", result["version"])["version"] == result["version"]
    assert told("prune", "--store", url, "--keep", "1") == {"removed": []}  # the live one, the one before, and younger
    served = Recommender.load(elsewhere.bundle(result["version"]), device="cpu")
    assert served.recommend(people, 3).height == 6
    assert main(["verify", "--store", url + "-nowhere"]) == 69


@pytest.mark.timeout(300)
def test_of_two_writers_on_two_hosts_one_wins(url: str, tables: Path, model: Path, tmp_path: Path) -> None:
    assert main(["init", "--store", url, "--model", str(model)]) == 0
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, *arguments(url, tables, f"items-{number}")], cwd=ROOT, text=True,
            env={**os.environ, "HOME": str(tmp_path / f"host-{number}")}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in (1, 2)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"  # both have seen the same CURRENT
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=200) for writer in writers]
    assert sorted(writer.returncode for writer in writers) == [0, 75], said
    assert any("was promoted by another writer meanwhile" in complaints for _, complaints in said)
    store = ObjectStore.open(url, tmp_path / "look")
    current = store.current()
    assert current is not None
    assert current.seq == 2
    store.verify()
    assert Recommender.load(store.bundle(current.version), device="cpu").items.len() == 80
