from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import recsys

ROOT = Path(recsys.__file__).resolve().parent.parent
HEAVY = ["torch", "transformers", "sentence_transformers", "faiss", "lightgbm", "polars", "sklearn", "scipy", "numpy"]


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_importing_the_package_loads_nothing_heavy():
    ran = python("-c", f"import sys, recsys; print([name for name in {HEAVY} if name in sys.modules])")
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_recommender_that_only_serves_does_not_load_what_trains():
    ran = python("-c", "import sys, recsys.recommender; print('pytorch_lightning' in sys.modules)")
    assert ran.stdout.strip() == "False", ran.stderr


def test_every_public_name_can_be_had():
    for name in recsys.__all__:
        assert getattr(recsys, name).__name__ == name
        assert name in dir(recsys)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'recsys' has no attribute 'Recommendor'"):
        _ = recsys.Recommendor


@pytest.mark.parametrize("name", ["ranking", "indexing"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_of_the_users_that_hides_a_stage_is_named(tmp_path, name, kind):
    hiding = tmp_path / f"{name}.py" if kind == "file" else tmp_path / name / "__init__.py"
    hiding.parent.mkdir(exist_ok=True)
    hiding.touch()
    (tmp_path / "script.py").write_text("import recsys\n")
    ran = python(tmp_path / "script.py")
    assert ran.returncode == 1
    assert f"ImportError: recsys needs its own package '{name}', but Python finds {hiding}; rename that" in ran.stderr


def test_a_stage_that_is_not_installed_is_named(tmp_path):
    (tmp_path / "recsys").mkdir()
    (tmp_path / "recsys" / "__init__.py").write_text((ROOT / "recsys" / "__init__.py").read_text())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-S", "-c", "import recsys"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert "ImportError: recsys needs its own package 'indexing', but Python finds none" in ran.stderr


def test_a_script_beside_an_unrelated_file_imports_the_package(tmp_path):
    (tmp_path / "features.py").touch()
    (tmp_path / "script.py").write_text("import recsys; print(recsys.__version__)\n")
    assert python(tmp_path / "script.py").stdout.strip() == recsys.__version__
