"""`python3 -m flanneld_masq`, the same as the program `flanneld-masq`."""

import sys

from .cli import main

sys.exit(main())
