"""`python -m shiftproof`."""

import sys

from shiftproof.cli import main

if __name__ == "__main__":
    sys.exit(main())
