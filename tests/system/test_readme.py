"""Both READMEs say the same: every command and every line of code of one is in the other, in the same order."""

import re
import tomllib
from pathlib import Path

import pytest

from recsys.bench.cli import main as bench_main
from recsys.cli import main
from recsys.config import config_from_dict

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name: str) -> list[tuple[str, list[str]]]:
    """Language and lines of each code block, without comments, which are in the reader's language."""
    found = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    return [(language, [re.sub(r"\s*#.*", "", line) for line in code.splitlines()]) for language, code in found]


def commands() -> list[list[str]]:
    """The shell lines of README.md as words."""
    return [line.split() for language, lines in blocks("README.md") if language == "bash" for line in lines if line]


def test_both_languages_have_the_same_code() -> None:
    english, chinese = blocks("README.md"), blocks("README.zh-CN.md")
    assert len(english) >= 6
    assert chinese == english


def test_both_languages_have_as_many_sections_and_rows() -> None:
    def shape(name: str) -> tuple[int, int]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return sum(line.startswith("## ") for line in lines), sum(line.startswith("|") for line in lines)

    assert shape("README.zh-CN.md") == shape("README.md")


@pytest.mark.parametrize("words", [words for words in commands() if words[0] in ("recsys", "recsys-bench")])
def test_commands_have_options_that_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    entry = main if words[0] == "recsys" else bench_main
    options = [word for word in words[1:] if word.startswith("--")]
    with pytest.raises(SystemExit) as stop:
        entry([words[1], "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in options)


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "make"])
def test_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)


def test_settings_shown_are_settings() -> None:
    shown = ["\n".join(lines) for language, lines in blocks("README.md") if language == "toml"]
    assert len(shown) >= 2
    for text in shown:
        assert config_from_dict(tomllib.loads(text)) is not None
