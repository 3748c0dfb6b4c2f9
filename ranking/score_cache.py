"""Scores of pairs of texts that were given lately, in memory.

Owns which of them are remembered. What the scores mean, and when they become void, is `ranking/interest.py`'s business.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from threading import Lock

DIGEST_BYTES = 16  # two texts in 10^19 share a fingerprint


class ScoreCache:
    """At most `size` scores; the one that was asked for longest ago gives way. Safe for several threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._scores: OrderedDict[bytes, float] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Scores remembered."""
        return len(self._scores)

    def get(self, keys: Sequence[bytes]) -> list[float | None]:
        """The score of each key, None where it is not remembered."""
        with self._lock:
            scores = [self._scores.get(key) for key in keys]
            for key, score in zip(keys, scores, strict=True):
                if score is not None:
                    self._scores.move_to_end(key)
        return scores

    def put(self, keys: Sequence[bytes], scores: Iterable[float]) -> None:
        """Remember the score of each key."""
        with self._lock:
            self._scores.update(zip(keys, scores, strict=True))
            while len(self._scores) > self._size:
                self._scores.popitem(last=False)


def fingerprints(pairs: Sequence[tuple[str, str]]) -> list[bytes]:
    """A key for each pair of texts: the digests of both."""
    distinct = {text for pair in pairs for text in pair}
    digests = {text: _digest(text) for text in distinct}
    return [digests[left] + digests[right] for left, right in pairs]


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
