"""`python -m recsys.rebuild`."""

import sys

from recsys.rebuild.cli import main

sys.exit(main())
