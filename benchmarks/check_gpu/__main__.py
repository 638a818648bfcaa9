"""The command: `python -m benchmarks.check_gpu`, in the checkout's root, with PYTHONPATH=src."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.check_gpu.checks import GOOD, Record, run_checks
from benchmarks.check_gpu.plan import plan
from benchmarks.check_gpu.sizes import DRY, GPU
from benchmarks.check_gpu.table import markdown
from shiftproof.base.files import write_bytes, write_json

ROOT = Path(__file__).parents[2]
SECONDS = 460.0
"""Of eight minutes, what the checks may take together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, write JSON, table and log, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="check-gpu", description="Tell what is right and fast on this GPU.")
    parser.add_argument("--output", type=Path, default=Path("runs/check-gpu"), metavar="DIR", help="where to write")
    parser.add_argument("--dry", action="store_true", help="on the CPU, at tiny sizes, to try the checks themselves")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all (default: {SECONDS:g})")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    date, begin = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), time.monotonic()

    def keep(records: list[Record]) -> None:
        result: dict[str, Any] = {
            "date": date,
            "dry": options.dry,
            "budget": options.seconds,
            "seconds": round(time.monotonic() - begin, 1),
            "machine": records[0]["details"] or {},
            "checks": records,
        }
        write_json(output / "check-gpu.json", result)
        write_bytes(output / "check-gpu.md", markdown(result).encode())

    with tempfile.TemporaryDirectory(prefix="check-gpu-") as work, (output / "check-gpu.log").open("w+b") as log:
        checks = plan(ROOT, Path(work), DRY if options.dry else GPU)
        records = run_checks(checks, options.seconds, log, keep, folder=ROOT)
    print(
        f"\n{(output / 'check-gpu.md').read_text(encoding='utf-8')}\nIn {output}: the table, all numbers and the log."
    )
    return int(any(record["status"] not in GOOD for record in records))


if __name__ == "__main__":
    sys.exit(main())
