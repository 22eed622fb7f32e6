"""``python -m ppgen``: the command line."""

import sys

from ppgen.cli import main

sys.exit(main())
