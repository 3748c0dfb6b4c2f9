"""Blocks of work: order, errors and the bar."""

import threading
import time

import pytest

from indexing.blocks import map_blocks


@pytest.mark.parametrize("at_once", [1, 3])
def test_parts_come_in_the_order_of_the_blocks(at_once):
    def work(start: int) -> int:
        time.sleep(0.002 * (5 - start))
        return start * 10

    assert map_blocks(work, range(5), desc="x", progress=False, at_once=at_once) == [0, 10, 20, 30, 40]


def test_several_blocks_are_worked_on_at_once_and_one_alone_in_the_calling_thread():
    together = threading.Barrier(2, timeout=10)
    map_blocks(lambda _: together.wait(), [0, 1], desc="x", progress=False, at_once=2)
    assert map_blocks(lambda _: threading.current_thread(), [7], desc="x", progress=False) == [threading.main_thread()]


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_ends_the_work(at_once):
    done = []

    def work(start: int) -> None:
        done.append(start)
        if start == 0:
            raise ValueError(f"block {start}")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="block 0"):
        map_blocks(work, range(1000), desc="x", progress=False, at_once=at_once)
    assert len(done) < 100


def test_the_bar_is_shown_where_that_is_asked_for(capfd):
    for progress in (True, False):
        map_blocks(lambda start: start, range(3), desc="counting", progress=progress)
        assert ("counting" in capfd.readouterr().err) == progress
