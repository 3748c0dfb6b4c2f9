"""What is taken of late: by everybody, and within each group of items, such as a category.

Owns counting with a half-life. Whose groups count for a user is decided in `indexing/sources.py`.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from indexing.sparse import keep_largest


def recency_weighted_counts(rows: npt.NDArray[np.int32], n_items: int, *, half_life: float) -> npt.NDArray[np.float32]:
    """How much each item was taken of late.

    Args:
        rows: item rows of all interactions, oldest first.
        n_items: rows of the items table.
        half_life: interactions after which an interaction counts half.

    Returns:
        float32 (n_items,).
    """
    age = np.arange(len(rows))[::-1] / half_life
    return np.bincount(rows, weights=0.5**age, minlength=n_items).astype(np.float32)


def group_neighbours(
    groups: npt.NDArray[np.int64], counts: npt.NDArray[np.float32], *, per_group: int
) -> sp.csr_matrix:
    """Each group's items, weighed by their share of what was taken from the group.

    Args:
        groups: int64 (n_items,), the group of each item, 0 or more.
        counts: float32 (n_items,), how much each item was taken; items with 0 are left out.
        per_group: the most items of a group, those taken most.

    Returns:
        float32 CSR (n_groups, n_items).
    """
    taken = np.flatnonzero(counts > 0)
    shape = (int(groups.max(initial=-1)) + 1, len(groups))
    totals = np.bincount(groups[taken], weights=counts[taken], minlength=shape[0])
    share = (counts[taken] / totals[groups[taken]]).astype(np.float32)
    return keep_largest(sp.csr_matrix((share, (groups[taken], taken)), shape=shape), per_group)
