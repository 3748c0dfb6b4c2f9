"""A tiny model, its tables, and a store in which it is live."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys import Recommender
from recsys.bundle import MANIFEST, open_bundle, seal_bundle
from recsys.config import config_from_dict
from recsys.rebuild import job
from recsys.rebuild.gates import GateResult
from recsys.rebuild.job import init
from recsys.rebuild.store import Store
from recsys.synthetic import Synthetic, generate

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A fresh bucket, and the environment in which it is found."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (comes with moto[server])")
    for name, value in {**KEYS, "AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.resource(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    name = f"bucket-{abs(hash(tmp_path)):x}"[:40]
    return client.create_bucket(Bucket=name)


@pytest.fixture(scope="session")
def data() -> Synthetic:
    return generate(n_users=60, n_items=80, n_topics=4, events_per_user=12, n_cold_items=4)


@pytest.fixture(scope="session")
def model(tiny_bert: str, data: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved recommender that knows all but the newest tenth of the interactions."""
    config = config_from_dict(
        {
            "encoder": {"model": tiny_bert},
            "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
            "interest": {"max_groups": 16, "group_size": 4},
            "n_interest": 0,
            "probabilities": False,
            "device": "cpu",
            "progress": False,
        }
    )
    folder = tmp_path_factory.mktemp("model") / "saved"
    cut = data.interactions["timestamp"].quantile(0.9, "lower")
    known = data.interactions.filter(pl.col("timestamp") < cut)
    Recommender(config).fit(known, data.items, data.users).save(folder)
    return folder


@pytest.fixture
def store(model: Path, tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "store")
    init(made, model, now=NOW)
    return made


@pytest.fixture
def resealed(model: Path, tmp_path: Path) -> Callable[[Callable[[Path], object]], Path]:
    """A copy of the model, changed and sealed again: every checksum holds."""

    def make(change: Callable[[Path], object]) -> Path:
        folder = tmp_path / "resealed"
        shutil.copytree(model, folder)
        metadata = open_bundle(folder).metadata
        (folder / MANIFEST).unlink()
        change(folder)
        seal_bundle(folder, metadata)
        return folder

    return make


@pytest.fixture
def put_live() -> Callable[[Store, Path], str]:
    """What `init` refuses to do: a sealed folder made live without being opened; returns the version."""

    def put(store: Store, folder: Path) -> str:
        staging = store.stage("by-hand")
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        version = store.publish("by-hand", open_bundle(folder).metadata, as_of_stamp=NOW)
        store.promote(version, run_id="by-hand", reason="by hand", promoted_at=NOW)
        return version

    return put


@pytest.fixture
def still_serves(data: Synthetic) -> Callable[[Store], None]:
    """What is live is whole, and three people get five items each."""

    def look(store: Store) -> None:
        current = store.current()
        assert current is not None
        store.verify()
        people = data.interactions["user_id"].unique().sort().head(3).to_list()
        lists = Recommender.load(store.bundle(current.version), device="cpu").recommend(people, 5)
        assert lists.height == 15
        assert lists["score"].is_finite().all()

    return look


@pytest.fixture
def no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate `reopen` passes unasked: the interpreter that it starts takes seconds."""

    def passed(*_: object) -> GateResult:
        return GateResult(name="reopen", value=1.0, limit="1.0", passed=True)

    monkeypatch.setattr(job, "reader_process", nullcontext)
    monkeypatch.setattr(job, "reopened", passed)
