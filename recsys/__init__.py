"""A two-stage recommender: `Recommender().fit(interactions, items).recommend(users)`.

Importing this package stays light; torch, FAISS and LightGBM are loaded when something that needs them is used.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.config import RecommenderConfig, read_config
    from recsys.datasets import Dataset, load_dataset
    from recsys.recommender import Recommender
    from recsys.rules import Rules

__version__ = "0.1.0"

_HOMES = {
    "Recommender": "recsys.recommender",
    "RecommenderConfig": "recsys.config",
    "Rules": "recsys.rules",
    "read_config": "recsys.config",
    "Dataset": "recsys.datasets",
    "load_dataset": "recsys.datasets",
}
__all__ = ["Dataset", "Recommender", "RecommenderConfig", "Rules", "load_dataset", "read_config"]


def _refuse_shadowed_stages() -> None:
    """A file of the user's named like one of our packages would be imported instead of it: say which one."""
    here = Path(__file__).resolve().parent.parent
    for name in ("indexing", "ranking"):
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != here / name / "__init__.py":
            raise ImportError(
                f"recsys needs its own package {name!r}, but Python finds {origin or 'none'}; "
                "rename that file or folder"
            )


_refuse_shadowed_stages()
import indexing  # noqa: E402, F401 - sets what numeric libraries read when they are loaded


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
