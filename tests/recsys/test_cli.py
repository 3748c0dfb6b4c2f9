import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from recsys import cli
from recsys.cli import exit_code, main, read_ids
from recsys.errors import (
    BundleCorrupt,
    BundleIncompatible,
    BundleLocked,
    BundleNotFound,
    DeviceUnavailable,
    InvalidConfig,
    InvalidData,
    NotFitted,
    PublishRefused,
    UnknownUsers,
)
from recsys.recommender import Recommender
from recsys.synthetic import generate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    """Tables as Parquet and CSV, and a configuration that is quick."""
    folder = tmp_path_factory.mktemp("data")
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    made.interactions.write_parquet(folder / "interactions.parquet")
    made.items.drop("categories").write_csv(folder / "items.csv")
    made.users.write_csv(folder / "users.csv")
    lines = [
        "n_interest = 4",
        'device = "cpu"',
        "[encoder]",
        f'model = "{tiny_bert}"',
        "[contrastive]",
        "encoder_steps = 3",
        "tower_max_steps = 5",
        "[interest]",
        "max_groups = 16",
        "group_size = 4",
    ]
    (folder / "config.toml").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """A model that the command has fitted."""
    assert main(fit_arguments(folder, folder / "model")) == 0
    return folder / "model"


def fit_arguments(folder, out):
    return [
        "fit",
        "--interactions", str(folder / "interactions.parquet"),
        "--items", str(folder / "items.csv"),
        "--users", str(folder / "users.csv"),
        "--config", str(folder / "config.toml"),
        "--out", str(out),
        "--seed", "3",
        "--quiet",
    ]  # fmt: skip


def recommend(model, out, *further):
    return main(["recommend", "--model", str(model), "--out", str(out), "--device", "cpu", "--quiet", *further])


class TestFit:
    def test_one_line_on_stdout_and_notes_on_stderr(self, folder, tmp_path, capfd):
        arguments = ["fit", "--data", str(folder), "--config", str(folder / "config.toml"), "--quiet"]
        assert main([*arguments, "--out", str(tmp_path / "model"), "--device", "cpu"]) == 0
        out, err = capfd.readouterr()
        assert out.startswith(f"{tmp_path / 'model'}: fitted for 60 users and saved in ")
        assert out.count("\n") == 1
        assert "windows: " in err
        assert "%|" not in err
        assert Recommender.load(tmp_path / "model", device="cpu").config.seed == 0

    def test_the_command_line_wins_over_the_file(self, model):
        config = Recommender.load(model, device="cpu").config
        assert (config.seed, config.n_interest, config.progress) == (3, 4, False)

    def test_the_logger_is_left_as_it_was(self, model):
        assert not cli.logging.getLogger("recsys").handlers

    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            ([], "give --interactions and --items, or --data"),
            (["--items", "items.csv"], "give --interactions and --items, or --data"),
            (["--data", "synthetic", "--items", "items.csv"], "give either --data or the tables"),
        ],
    )
    def test_tables_or_a_data_set(self, folder, tmp_path, capsys, tables, message):
        assert main(["fit", *tables, "--out", str(tmp_path / "m"), "--config", str(folder / "config.toml")]) == 2
        assert message in capsys.readouterr().err

    def test_an_encoder_that_is_not_to_be_had_is_a_matter_of_configuration(self, tmp_path, capsys):
        config = tmp_path / "config.toml"
        config.write_text('[encoder]\nmodel = "nobody/no-such-model"')
        assert main(["fit", "--data", "synthetic", "--out", str(tmp_path / "m"), "--config", str(config)]) == 2
        assert "error: encoder 'nobody/no-such-model' is neither a folder nor" in capsys.readouterr().err


class TestRecommend:
    def test_all_users_as_parquet(self, model, tmp_path, capsys):
        assert recommend(model, tmp_path / "lists.parquet", "--k", "5") == 0
        lists = pl.read_parquet(tmp_path / "lists.parquet")
        assert lists.columns == ["user_id", "item_id", "rank", "score"]
        assert lists["user_id"].n_unique() == 60
        assert capsys.readouterr().out == f"{tmp_path / 'lists.parquet'}: 300 rows for 60 users\n"
        assert [path.name for path in tmp_path.iterdir()] == ["lists.parquet"]

    def test_the_file_holds_what_python_gives(self, model, tmp_path):
        (tmp_path / "users.txt").write_text("u00007\n\n  u00002  \n")
        arguments = ["--users", str(tmp_path / "users.txt"), "--details", "--k", "4"]
        assert recommend(model, tmp_path / "lists.csv", *arguments) == 0
        lists = pl.read_csv(tmp_path / "lists.csv")
        expected = Recommender.load(model, device="cpu").recommend(["u00007", "u00002"], 4, details=True)
        assert lists.columns == expected.columns
        assert lists["source"].to_list() == expected["source"].to_list()
        assert lists["item_id"].to_list() == expected["item_id"].to_list()
        assert lists["user_id"].unique(maintain_order=True).to_list() == ["u00007", "u00002"]

    def test_allow_and_deny(self, model, tmp_path):
        (tmp_path / "allow.txt").write_text("i00001\ni00002\ni00003\n")
        pl.DataFrame({"item_id": ["i00002"]}).write_parquet(tmp_path / "deny.parquet")
        arguments = ["--allow", str(tmp_path / "allow.txt"), "--deny", str(tmp_path / "deny.parquet")]
        assert recommend(model, tmp_path / "lists.parquet", *arguments, "--filter-seen", "no") == 0
        assert set(pl.read_parquet(tmp_path / "lists.parquet")["item_id"]) == {"i00001", "i00003"}

    def test_diversity(self, model, tmp_path, capsys):
        arguments = ["--diversity", "0.7", "--details", "--k", "8"]
        assert recommend(model, tmp_path / "lists.parquet", *arguments) == 0
        assert pl.read_parquet(tmp_path / "lists.parquet")["source"].str.ends_with(", diversity").any()
        assert recommend(model, tmp_path / "lists.parquet", "--diversity", "1") == 2
        assert "error: rules.diversity=1.0 must lie in [0, 1)" in capsys.readouterr().err

    @pytest.mark.parametrize(("word", "seen"), [("no", True), ("yes", False)])
    def test_filter_seen(self, model, folder, tmp_path, word, seen):
        assert recommend(model, tmp_path / "lists.parquet", "--k", "60", "--filter-seen", word) == 0
        history = pl.read_parquet(folder / "interactions.parquet")
        lists = pl.read_parquet(tmp_path / "lists.parquet")
        assert (lists.join(history, on=["user_id", "item_id"], how="semi").height > 0) is seen

    def test_users_from_stdin_and_unknown_ones(self, model, tmp_path, monkeypatch, capsys):
        out = tmp_path / "lists.parquet"
        monkeypatch.setattr(sys, "stdin", io.StringIO("u00001\nnobody\n"))
        assert recommend(model, out, "--users", "-", "--on-unknown", "warn") == 0
        assert "1 users have no history" in capsys.readouterr().err
        assert set(pl.read_parquet(out)["user_id"]) == {"u00001", "nobody"}
        monkeypatch.setattr(sys, "stdin", io.StringIO("u00001\nnobody\n"))
        assert recommend(model, out, "--users", "-", "--on-unknown", "raise") == 1
        assert "error: 1 user was not in the interactions at fit: 'nobody'" in capsys.readouterr().err

    def test_no_user_is_an_error(self, model, tmp_path, capsys):
        (tmp_path / "users.txt").write_text("\n")
        assert recommend(model, tmp_path / "lists.csv", "--users", str(tmp_path / "users.txt")) == 65
        assert "users.txt: names no user" in capsys.readouterr().err

    def test_where_it_shall_go_is_checked_before_the_work(self, tmp_path, capsys):
        assert recommend(tmp_path / "no-model", tmp_path / "lists.xlsx") == 2
        assert "lists.xlsx must end in .parquet or .csv" in capsys.readouterr().err
        (tmp_path / "file").write_text("x")
        assert recommend(tmp_path / "no-model", tmp_path / "file" / "lists.csv") == 74
        assert "file" in capsys.readouterr().err

    def test_folders_above_are_made(self, model, tmp_path):
        assert recommend(model, tmp_path / "new" / "deep" / "lists.csv") == 0
        assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["lists.csv"]

    def test_a_failed_write_leaves_what_was_there(self, tmp_path):
        def write(path):
            path.write_text("half")
            raise OSError(errno.ENOSPC, "no space left")

        (tmp_path / "lists.csv").write_text("old")
        with pytest.raises(OSError, match="no space left"):
            cli._write(tmp_path / "lists.csv", write)
        assert (tmp_path / "lists.csv").read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 1


class TestIds:
    NUMBERS = pl.Series("user_id", [1], dtype=pl.Int64)
    STRINGS = pl.Series("user_id", ["1"], dtype=pl.String)

    def test_text_becomes_numbers_where_the_model_has_numbers(self, tmp_path):
        (tmp_path / "users.txt").write_text("\ufeff12\r\n7\r\n", encoding="utf-8")
        assert read_ids(str(tmp_path / "users.txt"), self.NUMBERS).to_list() == [12, 7]

    def test_numbers_of_a_csv_file_become_text_where_the_model_has_text(self, tmp_path):
        pl.DataFrame({"user_id": [12, 7]}).write_csv(tmp_path / "users.csv")
        assert read_ids(str(tmp_path / "users.csv"), self.STRINGS).to_list() == ["12", "7"]

    @pytest.mark.parametrize("spelling", ["007", "ada", "1.0"])
    def test_text_that_is_no_number_is_refused(self, tmp_path, spelling):
        (tmp_path / "users.txt").write_text(f"12\n{spelling}\n")
        with pytest.raises(InvalidData, match=rf"an id must be Int64, .* 1 of 2 rows\. first: '{spelling}'"):
            read_ids(str(tmp_path / "users.txt"), self.NUMBERS)

    def test_typed_ids_stay_as_they_are(self, tmp_path):
        pl.DataFrame({"user_id": [12, 7]}).write_parquet(tmp_path / "users.parquet")
        assert read_ids(str(tmp_path / "users.parquet"), self.STRINGS).dtype == pl.Int64

    def test_a_table_without_the_column(self, tmp_path):
        pl.DataFrame({"who": [12]}).write_csv(tmp_path / "users.csv")
        with pytest.raises(InvalidData, match=r"required column is missing; there are: who\. rename one to user_id"):
            read_ids(str(tmp_path / "users.csv"), self.STRINGS)

    @pytest.mark.parametrize("content", [None, b"\xff\xfe"])
    def test_what_is_no_text(self, tmp_path, content):
        path = tmp_path / "users.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InvalidData, match=r"cannot be read as text .* one user_id a line"):
            read_ids(str(path), self.STRINGS)


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (InvalidConfig("x"), 2),
            (PublishRefused("x"), 3),
            (InvalidData(table="items", rule="x", remedy="y"), 65),
            (BundleNotFound("x"), 69),
            (BundleCorrupt("x"), 69),
            (BundleIncompatible("x"), 69),
            (DeviceUnavailable("x"), 69),
            (BundleLocked("x"), 75),
            (NotFitted("x"), 1),
            (UnknownUsers([1]), 1),
            (OSError(errno.ENOSPC, "x"), 73),
            (OSError(errno.EIO, "x"), 74),
        ],
    )
    def test_of_each_error(self, error, code):
        assert exit_code(error) == code

    @pytest.mark.parametrize("arguments", [[], ["fit"], ["recommend"], ["dance"], ["recommend", "--k", "many"]])
    def test_wrong_usage(self, arguments, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "usage: recsys" in capsys.readouterr().err

    def test_configuration(self, tmp_path, capsys):
        (tmp_path / "config.toml").write_text("seeed = 1")
        arguments = ["fit", "--data", "synthetic", "--out", str(tmp_path / "m")]
        assert main([*arguments, "--config", str(tmp_path / "config.toml")]) == 2
        err = capsys.readouterr().err
        assert err == "error: unknown key seeed; did you mean seed?\n"

    def test_input_data(self, folder, tmp_path, capsys):
        arguments = ["--interactions", str(tmp_path / "no.csv"), "--items", str(folder / "items.csv")]
        config = str(folder / "config.toml")
        assert main(["fit", *arguments, "--config", config, "--out", str(tmp_path / "m")]) == 65
        assert capsys.readouterr().err.startswith(f"error: interactions: the path {tmp_path / 'no.csv'} does not exist")

    def test_no_model(self, tmp_path, capsys):
        assert recommend(tmp_path, tmp_path / "lists.csv") == 69
        assert "error: " in capsys.readouterr().err

    def test_no_device(self, folder, tmp_path, capsys):
        arguments = ["fit", "--data", str(folder), "--config", str(folder / "config.toml"), "--device", "cuda:99"]
        assert main([*arguments, "--out", str(tmp_path / "m")]) == 69
        assert "error: device 'cuda:99' is not there" in capsys.readouterr().err

    def test_an_input_that_is_a_folder(self, model, tmp_path, capsys):
        assert recommend(model, tmp_path / "lists.csv", "--users", str(tmp_path)) == 74
        assert "error: [Errno 21]" in capsys.readouterr().err

    def test_an_interruption(self, folder, tmp_path, monkeypatch, capsys):
        def interrupt(name):
            raise KeyboardInterrupt

        monkeypatch.setattr("recsys.datasets.load_dataset", interrupt)
        arguments = ["fit", "--data", "synthetic", "--config", str(folder / "config.toml")]
        assert main([*arguments, "--out", str(tmp_path / "m")]) == 130
        assert capsys.readouterr().err == "interrupted\n"

    def test_a_bug_shows_its_traceback(self, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("recsys.datasets.load_dataset", lambda name: 1 / 0)
        arguments = ["fit", "--data", "synthetic", "--config", str(folder / "config.toml")]
        assert main([*arguments, "--out", str(tmp_path / "m")]) == 1
        err = capsys.readouterr().err
        assert err.startswith("Traceback")
        assert "ZeroDivisionError" in err


class TestDoctor:
    def test_json_is_all_there_is_on_stdout(self, capfd):
        assert main(["doctor", "--json"]) in (0, 69)
        checks = json.loads(capfd.readouterr().out)["checks"]
        assert {"name", "value", "ok", "remedy", "fatal"} == set(checks[0])

    def test_text_has_a_line_a_check(self, capsys):
        main(["doctor"])
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith(("ok ", "warning ", "   ")) for line in lines)
        assert any("recsys-twostage" in line for line in lines)


@pytest.mark.parametrize("module", ["recsys.cli", "recsys.bench.cli"])
def test_help_is_light(module):
    code = (
        "import sys\n"
        f"from {module} import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as stopped:\n"
        "    assert stopped.code == 0\n"
        "heavy = {'torch', 'faiss', 'lightgbm', 'sentence_transformers', 'transformers', 'polars', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "usage: recsys" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("first", ["recsys", "indexing.contrastive"])
def test_what_libraries_read_when_they_are_loaded_is_set_before(monkeypatch, first):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    code = f"import os, {first}; print(os.environ['GOMP_SPINCOUNT'], os.environ['THP_MEM_ALLOC_ENABLE'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["1000", "0"]
