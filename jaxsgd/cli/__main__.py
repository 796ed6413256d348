"""`python -m jaxsgd.cli`: the command `jaxsgd`."""

import sys

from jaxsgd.cli.main import main

sys.exit(main())
