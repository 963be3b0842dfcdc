"""`python3 -m flanneld_masq`, the same as the program `flanneld-masq`."""

import sys

from . import lean  # noqa: F401  first of all
from .cli import main

sys.exit(main())
