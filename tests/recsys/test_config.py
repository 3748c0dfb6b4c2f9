from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.index import IndexConfig
from ranking.features import FeatureConfig
from recsys.config import RecommenderConfig, config_from_dict, read_config
from recsys.config import to_toml as written
from recsys.errors import InvalidConfig

CHANGED = RecommenderConfig(
    contrastive=ContrastiveConfig(encoder_steps=7, temperature=0.1),
    index=IndexConfig(kind="exact"),
    features=FeatureConfig(windows_days=(1, 5)),
    ignore_columns=("brand", "shop"),
    unknown_items="raise",
    repeat_limit=0.5,
    progress=False,
    seed=3,
)


def to_toml(values: dict[str, Any]) -> str:
    """Top-level keys, then one table for each nested dictionary; None has no form in TOML and is left out."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict | None)]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", to_toml(table)]
    return "\n".join(lines)


class TestToToml:
    @pytest.mark.parametrize("changes", [{}, {"ignore_columns": ('a"\\\n\x7f', "无线"), "repeat_limit": 1e-05}])
    def test_is_read_back(self, tmp_path, changes):
        config = replace(CHANGED, **changes)
        (tmp_path / "config.toml").write_text(written(config), encoding="utf-8")
        assert read_config(tmp_path / "config.toml") == replace(config, progress=True)

    def test_says_what_differs_and_no_more(self):
        assert written(RecommenderConfig()) == "\n"
        assert (
            written(RecommenderConfig(seed=3, index=IndexConfig(kind="exact")))
            == 'seed = 3\n\n[index]\nkind = "exact"\n'
        )


class TestReadConfig:
    @pytest.mark.parametrize("config", [RecommenderConfig(), CHANGED])
    def test_brings_back_every_value(self, tmp_path, config):
        path = tmp_path / "config.toml"
        path.write_text(to_toml(asdict(config)), encoding="utf-8")
        assert read_config(path) == read_config(str(path)) == config

    def test_of_an_empty_file_is_the_default(self, tmp_path):
        (tmp_path / "empty.toml").touch()
        assert read_config(tmp_path / "empty.toml") == RecommenderConfig()

    def test_says_that_the_file_is_missing(self, tmp_path):
        with pytest.raises(InvalidConfig, match=r"config file .*nowhere\.toml does not exist"):
            read_config(tmp_path / "nowhere.toml")

    def test_says_that_the_file_cannot_be_read(self, tmp_path):
        with pytest.raises(InvalidConfig, match=r"config file .* cannot be read: Is a directory"):
            read_config(tmp_path)

    @pytest.mark.parametrize("content", [b"seed = ", b"[history\n", b"seed = 1\nseed = 2", b"\xff\xfe"])
    def test_says_that_the_file_is_no_toml(self, tmp_path, content):
        path = tmp_path / "broken.toml"
        path.write_bytes(content)
        with pytest.raises(InvalidConfig, match=r"config file .*broken\.toml is not valid TOML: "):
            read_config(path)


class TestFromDict:
    @pytest.mark.parametrize("config", [RecommenderConfig(), CHANGED])
    def test_takes_what_asdict_gives_also_by_way_of_json(self, config):
        assert config_from_dict(asdict(config)) == config
        assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config

    def test_keeps_the_default_of_what_is_not_named(self):
        config = config_from_dict({"seed": 4, "history": {"max_length": 9}})
        default = RecommenderConfig()
        assert config == replace(default, seed=4, history=replace(default.history, max_length=9))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sed": 1}, r"unknown key sed; did you mean seed\?"),
            ({"histroy": {}}, r"unknown key histroy; did you mean history\?"),
            ({"history": {"max_lenght": 3}}, r"unknown key history\.max_lenght; did you mean history\.max_length\?"),
            ({"ranker": {"zzzz": 3}}, r"unknown key ranker\.zzzz; known keys: n_trees, early_stopping, .*n_threads$"),
        ],
    )
    def test_names_the_nearest_key(self, values, message):
        with pytest.raises(InvalidConfig, match=message):
            config_from_dict(values)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"history": 3}, "history must be a table, got 3"),
            ({"seed": "1"}, "seed must be int, got '1'"),
            ({"seed": 1.0}, r"seed must be int, got 1\.0"),
            ({"seed": True}, "seed must be int, got True"),
            ({"progress": 1}, "progress must be bool, got 1"),
            ({"device": 0}, "device must be str, got 0"),
            ({"repeat_limit": "all"}, "repeat_limit must be float, got 'all'"),
            ({"unknown_items": 3}, r"unknown_items must be Literal\['drop', 'raise'\], got 3"),
            ({"ignore_columns": "brand"}, r"ignore_columns must be tuple\[str, \.\.\.\], got 'brand'"),
            ({"features": {"windows_days": [7, "x"]}}, r"features\.windows_days must be tuple\[int, \.\.\.\], got "),
            ({"contrastive": {"encoder_steps": "few"}}, r"contrastive\.encoder_steps must be int \| None, got 'few'"),
            ({"history": {"max_length": 2.5}}, r"history\.max_length must be int, got 2\.5"),
        ],
    )
    def test_refuses_a_value_of_another_type(self, values, message):
        with pytest.raises(InvalidConfig, match=f"^{message}"):
            config_from_dict(values)

    def test_takes_a_whole_number_for_a_fraction(self):
        assert config_from_dict({"repeat_limit": 1}).repeat_limit == 1.0

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"history": {"n_heads": 3}}, "history: n_heads=3 must divide dim=128"),
            ({"index": {"kind": "tree"}}, "index: kind must be 'auto', 'exact', .* or 'ivf-pq', got 'tree'"),
            ({"features": {"windows_days": [7, 3]}}, r"features: windows_days=\(7, 3\) must ascend"),
            ({"seed": -1}, "config: seed=-1 must be 0 or more"),
        ],
    )
    def test_says_which_part_refuses_a_value(self, values, message):
        with pytest.raises(InvalidConfig, match=f"^{message}"):
            config_from_dict(values)


class TestRecommenderConfig:
    @pytest.mark.parametrize(
        ("name", "value", "least"), [("n_interest", -1, 0), ("max_label_users", 0, 1), ("seed", -1, 0)]
    )
    def test_refuses_numbers_that_are_too_small(self, name, value, least):
        with pytest.raises(InvalidConfig, match=f"{name}={value} must be {least} or more"):
            RecommenderConfig(**{name: value})

    @pytest.mark.parametrize("name", ["repeat_limit", "novelty_limit", "unknown_token_limit"])
    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
    def test_refuses_shares_outside_their_range(self, name, value):
        with pytest.raises(InvalidConfig, match=rf"{name}={value} is a share, it must lie in \[0, 1\]"):
            RecommenderConfig(**{name: value})

    def test_refuses_another_rule_for_unknown_items(self):
        with pytest.raises(InvalidConfig, match='unknown_items=\'keep\' must be "drop" or "raise"'):
            RecommenderConfig(unknown_items="keep")  # type: ignore[arg-type]

    def test_every_part_documents_every_field(self):
        config = RecommenderConfig()
        parts = [config, *(getattr(config, entry.name) for entry in fields(config))]
        for part in filter(is_dataclass, parts):
            undocumented = [entry.name for entry in fields(part) if f"{entry.name}:" not in (type(part).__doc__ or "")]
            assert not undocumented, type(part)
