"""`python3 -m flanneld_masq`, the same as the program `flanneld-masq`."""

import sys

from flanneld_masq import hangup  # noqa: F401  isort: skip  first of all, for SIGHUP may come any time
from flanneld_masq import footprint  # noqa: F401  isort: skip
from flanneld_masq.cli.main import main

sys.exit(main())
