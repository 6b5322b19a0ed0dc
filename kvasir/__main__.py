"""The `kvasir` command where nothing is installed: `python -m kvasir`, with the halls on PYTHONPATH."""

import sys

from kvasir.cli.main import main

sys.exit(main())
