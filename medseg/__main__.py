"""``python -m medseg``: the same as the command ``medseg``."""

import sys

from medseg.cli import main

sys.exit(main())
