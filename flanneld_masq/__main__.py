"""`python3 -m flanneld_masq`, the same as the program `flanneld-masq`."""

import sys

from flanneld_masq import footprint  # noqa: F401  first of all
from flanneld_masq.cli.main import main

sys.exit(main())
