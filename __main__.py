"""`python -m pfdiff` is the command `pfdiff`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
