"""The made-up studies of the unit tests serve here too."""

import sys

from helpers import REPO

sys.path.append(str(REPO / "tests" / "unit"))
