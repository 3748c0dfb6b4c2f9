"""Stage 1: strings and arrays in, candidate rows out."""

import os

# Libraries read these when they are loaded, so they stand before torch, FAISS and LightGBM are; who sets them otherwise
# keeps his own. Idle OpenMP threads spin, 10 to 30 times slower where other programs use the cores:
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# On Linux torch takes its large tensors from the kernel anew at every step, in huge pages with a fifth less time in all
# (docs/decisions/015-huge-pages.md):
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
