"""Work on blocks of users, a few at once, with a bar."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tqdm import tqdm

Part = TypeVar("Part")

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
AT_ONCE = min(4, CORES)  # more wait for each other, and memory grows with them


def map_blocks(
    work: Callable[[int], Part], starts: Sequence[int], *, desc: str, progress: bool, at_once: int = AT_ONCE
) -> list[Part]:
    """What the work makes of each block, in their order.

    NumPy, SciPy and FAISS let other threads run while they compute, and much of a block keeps one core busy.

    Args:
        work: from the start of a block; safe for several threads where `at_once` is above 1.
        starts: of the blocks.
        desc: what the bar says.
        progress: whether stderr shows one.
        at_once: blocks.
    """
    bar = partial(tqdm, total=len(starts), desc=desc, disable=not progress, mininterval=1.0)
    if min(at_once, len(starts)) <= 1:  # what one request asks for needs no other thread
        return list(bar(map(work, starts)))
    with ThreadPoolExecutor(at_once) as pool:
        return list(bar(pool.map(work, starts)))
