"""`python -m jaxsgd`: the command `jaxsgd`."""

import sys

from jaxsgd.cli.main import main

sys.exit(main())
