"""Scores remembered in memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ranking.score_cache import ScoreCache, fingerprints


def test_the_one_asked_for_longest_ago_gives_way():
    cache = ScoreCache(2)
    cache.put([b"a", b"b"], [1.0, 2.0])
    assert cache.get([b"a"]) == [1.0]
    cache.put([b"c"], [3.0])
    assert cache.get([b"a", b"b", b"c"]) == [1.0, None, 3.0]


def test_of_no_size_remembers_nothing():
    cache = ScoreCache(0)
    cache.put([b"a"], [1.0])
    assert len(cache) == 0
    assert cache.get([b"a"]) == [None]


def test_a_fingerprint_tells_which_text_is_which_and_reads_anything():
    keys = fingerprints([("a", "b"), ("b", "a"), ("", "ab"), ("ab", ""), ("\ud800", "\x00"), ("a", "b")])
    assert len(set(keys)) == 5
    assert keys[0] == keys[5]


def test_several_threads_may_ask_and_tell():
    cache = ScoreCache(500)

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            numbers = rng.integers(0, 1000, 20)
            keys = [b"%d" % number for number in numbers]
            found = cache.get(keys)
            if any(score not in (None, number) for score, number in zip(found, numbers, strict=True)):
                return False
            cache.put(keys, numbers.tolist())
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(cache) == 500
