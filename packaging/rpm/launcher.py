#!/usr/bin/python3 -IB
"""Starts kdumphpd with the libraries that its package brings along.

-I keeps the environment and the working directory out of a program that runs
as root; -B leaves no byte code behind that the package does not own.
"""

import sys

sys.path.insert(0, "@PRIVATEDIR@")

from kdumphpd.cli import main

sys.exit(main())
