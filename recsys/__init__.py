"""A two-stage recommender: `Recommender().fit(interactions, items).recommend(users)`.

Importing this package stays light; torch, FAISS and LightGBM are loaded when something that needs them is used.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.config import RecommenderConfig, read_config
    from recsys.datasets import Dataset, load_dataset
    from recsys.recommender import Recommender
    from recsys.rules import Rules

__version__ = "0.1.0"

# Libraries read these when they are loaded, so they stand before torch, FAISS and LightGBM are; who sets them otherwise
# keeps his own. Idle OpenMP threads spin, 10 to 30 times slower where other programs use the cores:
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# On Linux torch takes its large tensors from the kernel anew at every step, in huge pages with a fifth less time in all
# (docs/decisions/015-huge-pages.md):
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

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


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
