"""`python -m shiftproof` and the command `shiftproof`."""

import sys


def run() -> int:
    """Run the command line; an interrupt ends it without a traceback, also while modules are imported."""
    try:
        from shiftproof.cli import main

        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
