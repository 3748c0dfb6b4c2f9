"""The files that every kind of index has: the header, the deleted rows, matrices of vectors.

Owns their form and the checks while reading. The file of a FAISS index is ``faiss_master.py``'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexing.index import FloatArray, Mask, VectorIndex

HEADER = "index.json"
DELETED = "deleted.npy"


def write_header(folder: Path, index: VectorIndex, **extra: object) -> None:
    """Write ``index.json`` (kind, size, dim, recall and what a kind needs besides) and ``deleted.npy`` where needed."""
    header = {"kind": index.kind, "size": index.size, "dim": index.dim, "recall": index.recall, **extra}
    if index.deleted.any():
        header["n_deleted"] = int(index.deleted.sum())
        np.save(folder / DELETED, index.deleted, allow_pickle=False)
    (folder / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def read_header(folder: Path) -> dict[str, Any]:
    """Read ``index.json``.

    Raises:
        ValueError: It is missing, not JSON, lacks a key, or holds a recall that is none.
    """
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as the header of an index ({error}); build the index again") from error
    if not isinstance(header, dict) or not {"kind", "size", "dim"} <= header.keys():
        raise ValueError(f"{path} must hold an object with kind, size and dim; build the index again")
    recall = header.setdefault("recall", None)
    if recall is not None and not isinstance(recall, float):
        raise ValueError(f"{path}: recall must be a number or null, got {recall!r}; build the index again")
    return header


def read_deleted(folder: Path, header: dict[str, Any]) -> Mask:
    """Which rows are deleted, bool (n,).

    Raises:
        ValueError: The file is missing, unreadable, or contradicts the header.
    """
    n_deleted = header.get("n_deleted", 0)
    if n_deleted == 0:
        return np.zeros(header["size"], dtype=np.bool_)
    deleted = read_array(folder / DELETED)
    if deleted.dtype != np.bool_ or deleted.shape != (header["size"],) or deleted.sum() != n_deleted:
        expected = f"bool of shape ({header['size']},) with {n_deleted} true"
        raise ValueError(f"{folder / DELETED} must be {expected}; build the index again")
    return deleted


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read an npy file, or map it into memory so that only what is touched is read.

    Raises:
        ValueError: It is missing or unreadable.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); build the index again") from error
    return array


def read_vectors(folder: Path, name: str, header: dict[str, Any], *, mapped: bool = False) -> FloatArray:
    """Read the float32 matrix that the header describes.

    Raises:
        ValueError: It is missing, unreadable, of another dtype, or contradicts the header.
    """
    vectors = read_array(folder / name, mapped=mapped)
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        found = f"{vectors.dtype} of shape {vectors.shape}"
        raise ValueError(f"{folder / name} must be a float32 matrix, got {found}; build the index again")
    check_header(folder, header, size=vectors.shape[0], dim=vectors.shape[1])
    return vectors


def check_header(folder: Path, header: dict[str, Any], *, size: int, dim: int) -> None:
    """Compare what was read with what the header promises.

    Raises:
        ValueError: Size or dimension differ.
    """
    if (size, dim) != (header["size"], header["dim"]):
        promised = f"{header['size']} x {header['dim']}"
        raise ValueError(f"{folder}: the index holds {size} x {dim}, its header says {promised}; build the index again")
