"""The step log of a run: what has been done, for resuming and for whoever looks later.

Owns one JSON file a run, replaced whole at every step. Does not own what the steps mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recsys.bundle import replace_file
from recsys.errors import BundleCorrupt
from recsys.rebuild.current import check_run_id


class RunLog:
    """Logs in `folder`, `<run_id>.json` each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, run_id: str, step: str, **facts: Any) -> None:
        """Add a step; it is on disk when this returns.

        Args:
            run_id: whose log.
            step: what was done.
            facts: JSON values.
        """
        body = {"run_id": run_id, "steps": [*self.steps(run_id), {"step": step, **facts}]}
        self.folder.mkdir(exist_ok=True)
        replace_file(self._path(run_id), (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The steps so far, oldest first; none of an unknown run.

        Raises:
            BundleCorrupt: the file is not a log.
        """
        path = self._path(run_id)
        try:
            steps = json.loads(path.read_bytes())["steps"]
            return [{"step": str(entry["step"]), **entry} for entry in steps]
        except FileNotFoundError:
            return []
        except (ValueError, LookupError, TypeError) as error:
            raise BundleCorrupt(f"{path} is damaged; remove it, and the run starts from its beginning.") from error

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{check_run_id(run_id)}.json"
