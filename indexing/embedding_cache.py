"""Vectors of texts on disk, found by the text's content, so that no text is encoded twice.

Owns the parts' files: what they are called, how they are written and checked. Does not own how a vector is made, nor
which encoder is the right one: an encoder's cache lies in a folder named by its fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class EmbeddingCache:
    """All vectors of one encoder that were ever needed.

    A part is a Parquet file, `key` (sha256 of the text as UTF-8, 32 bytes) and `vector` (float32), whose name carries
    the sha256 of its bytes; it is written beside and renamed, and never changed. Several processes may add parts at
    the same time; each sees those that were there when it opened the cache.

    Args:
        folder: of all encoders' caches; it is made where it is missing.
        fingerprint: `BiEncoder.fingerprint()`.

    Attributes:
        fingerprint: as given.

    Raises:
        ValueError: the fingerprint is no name for a folder.
        RuntimeError: a part is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        if not fingerprint.isalnum():
            raise ValueError(f"fingerprint={fingerprint!r} must consist of letters and digits")
        self.fingerprint = fingerprint
        self._folder = folder / fingerprint
        self._folder.mkdir(parents=True, exist_ok=True)
        self._place: dict[bytes, tuple[Path, int]] = {}
        for part in sorted(self._folder.glob("part-*.parquet")):
            self._enter(part, _checked(part))

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._place)

    def __contains__(self, text: str) -> bool:
        """Whether the text's vector is known."""
        return _key(text) in self._place

    def complete(self, texts: Sequence[str], embed: Embed) -> NDArray[np.float32]:
        """Look vectors up, and make, keep and write those that are missing.

        Args:
            texts: n distinct strings.
            embed: makes (m, dim) float32 vectors of m texts.

        Returns:
            (n, dim) float32 in the order of `texts`.

        Raises:
            RuntimeError: a part is damaged, or was removed after the cache was opened.
        """
        keys = [_key(text) for text in texts]
        missing = [row for row, key in enumerate(keys) if key not in self._place]
        if missing or not texts:
            made = embed([texts[row] for row in missing])
            self._add([keys[row] for row in missing], made)
            if len(missing) == len(texts):
                return made
        return self._look_up(keys)

    def _look_up(self, keys: list[bytes]) -> NDArray[np.float32]:
        rows_of: dict[Path, list[int]] = {}
        for row, key in enumerate(keys):
            rows_of.setdefault(self._place[key][0], []).append(row)
        order, stored = [], []
        for part, rows in rows_of.items():
            vectors = _vectors(part)
            stored.append(vectors[[self._place[keys[row]][1] for row in rows]])
            order.extend(rows)
        found = np.empty((len(keys), stored[0].shape[1]), dtype=np.float32)
        found[order] = np.concatenate(stored)
        return found

    def _add(self, keys: list[bytes], vectors: NDArray[np.float32]) -> None:
        if not keys:
            return
        content = io.BytesIO()
        frame = pl.DataFrame(
            {
                "key": pl.Series(keys, dtype=pl.Binary),
                "vector": pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])),
            }
        )
        frame.write_parquet(content, compression="uncompressed")
        data = content.getvalue()
        part = self._folder / f"part-{hashlib.sha256(data).hexdigest()}.parquet"
        _write(part, data)
        self._enter(part, data)

    def _enter(self, part: Path, data: bytes) -> None:
        for row, key in enumerate(pl.read_parquet(data, columns=["key"])["key"]):
            self._place[key] = (part, row)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _checked(part: Path) -> bytes:
    """The part's bytes, which are known to be those that were written before any parser sees them."""
    data = part.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if part.name != f"part-{sha256}.parquet":
        raise RuntimeError(
            f"{part} of the embedding cache is damaged (its bytes have sha256 {sha256}): delete the file, and its "
            "texts will be encoded again"
        )
    return data


def _vectors(part: Path) -> NDArray[np.float32]:
    """All vectors of a part that was checked when the cache was opened, (n, dim)."""
    try:
        stored: NDArray[np.float32] = pl.read_parquet(part, columns=["vector"])["vector"].to_numpy()
    except FileNotFoundError as error:
        raise RuntimeError(f"{part} of the embedding cache was removed after it was opened: open it again") from error
    return stored


def _write(part: Path, data: bytes) -> None:
    stage = part.with_name(f".{part.name}.{os.getpid()}")
    with stage.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    stage.replace(part)
