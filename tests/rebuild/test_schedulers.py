"""The schedulers' files in examples/: `recsys-rebuild` takes their commands, and cron mails what it shall."""

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from recsys.rebuild.cli import _parser

FOLDER = Path(__file__).parents[2] / "examples" / "schedulers"
COMMAND = re.compile(r"recsys-rebuild run(?: [^ >|\n]+)+")


def crontab() -> tuple[dict[str, str], str]:
    """Its variables and the command of its one line."""
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines[:-1]), lines[-1].split(" ", 5)[5]


def kubernetes() -> str:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    job = yaml.safe_load((FOLDER / "kubernetes-cronjob.yaml").read_text())["spec"]["jobTemplate"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    return shlex.join([*container["command"], *container["args"]])


def airflow() -> str:
    tree = ast.parse((FOLDER / "airflow_dag.py").read_text())
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return next(text for text in texts if text.startswith("recsys-rebuild"))


@pytest.mark.parametrize(
    "written",
    [lambda: crontab()[1], lambda: (FOLDER / "recsys-rebuild.service").read_text(), kubernetes, airflow],
    ids=["cron", "systemd", "kubernetes", "airflow"],
)
def test_the_command_is_one_that_there_is(written) -> None:
    found = COMMAND.search(written())
    assert found is not None
    arguments = _parser().parse_args(shlex.split(found.group())[1:])
    assert (arguments.json, arguments.users) == (True, None)
    assert arguments.interactions.endswith("interactions")


@pytest.mark.parametrize(("code", "mailed"), [(0, ""), (75, ""), (3, "said\n"), (65, "said\n")])
def test_cron_mails_what_somebody_must_see(tmp_path: Path, code: int, mailed: str) -> None:
    program = tmp_path / "recsys-rebuild"
    program.write_text(f"#!/bin/sh\necho {{}}\necho said >&2\nexit {code}\n")
    program.chmod(0o755)
    variables, command = crontab()
    assert "/bin" in variables["PATH"].split(":")
    named = {**variables, "PATH": f"{tmp_path}:{os.defpath}", "LOG": str(tmp_path / "log")}
    ran = subprocess.run(["/bin/sh", "-c", command], env=named, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("", mailed)
    assert (tmp_path / "log.json").read_text() == "{}\n"
