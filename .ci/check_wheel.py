"""Build the wheel, assert its top level, and import it from an environment that has nothing else."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

PACKAGES = {"recsys", "indexing", "ranking"}
COMMANDS = ("recsys", "recsys-bench", "recsys-rebuild")
ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    assert "site-packages" in module.__file__, module.__file__
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)])
        wheel = next(Path(folder).glob("*.whl"))
        top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        found = {name for name in top if not name.endswith(".dist-info")}
        if found != PACKAGES:
            sys.exit(f"the wheel's top level is {sorted(found)}, it must be {sorted(PACKAGES)}")
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)])
        run([python, "-c", PROGRAM, *sorted(PACKAGES)], cwd=folder)
        for command in COMMANDS:
            run([str(environment / "bin" / command), "--help"], cwd=folder)
    print(f"{wheel.name}: top level {sorted(found)}, imported on its own")


def run(command: list[str], cwd: str | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
