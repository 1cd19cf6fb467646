"""``python -m kdumphpd``: the command line."""

from __future__ import annotations

import sys

from kdumphpd.cli import main

sys.exit(main())
