"""What the kinds of index hold for a vector: code sizes and memory.

Owns sizes only, so that the choice between kinds, the building and the reports count alike.
"""

from __future__ import annotations

CODED = ("ivf-sq8", "ivf-pq")
LINKS = 16  # neighbours of a vector in the HNSW graph; twice as many on its lowest level
LIST_BLOCK = 32  # the fast scan pads each list to a multiple of it


def n_subvectors(dim: int) -> int:
    """Parts of a vector that a product quantiser codes with four bits each: pairs of dimensions.

    Source: FAISS wiki, "Fast accumulation of PQ and AQ codes (FastScan)".
    """
    return dim // 2 if dim % 2 == 0 else dim


def bytes_per_item(kind: str, n: int, dim: int, n_lists: int = 0) -> int:
    """Memory of an index over n vectors, divided by n, rounded up.

    The full vectors that ``ivf-sq8`` and ``ivf-pq`` rescore with are the caller's and not counted.
    """
    vector = 4 * dim
    if kind in ("exact", "flat"):
        return vector
    if kind == "hnsw":
        upper_levels = 4 * LINKS / (LINKS - 1)
        return vector + 4 * 2 * LINKS + round(upper_levels) + 8 + 4  # an offset and a level a vector
    code, padding = _code_bytes(kind, dim)
    lists = n_lists * (vector + padding) / n
    return round(code + 8 + lists + 0.5)  # an id of 8 bytes


def _code_bytes(kind: str, dim: int) -> tuple[int, int]:
    """Bytes of a vector's code, and what half a block of padding costs a list."""
    if kind == "ivf-pq":
        code = (n_subvectors(dim) + 1) // 2
        return code, code * LIST_BLOCK // 2
    return (dim if kind == "ivf-sq8" else 4 * dim), 0
