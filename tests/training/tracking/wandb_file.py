"""Reads what W&B writes offline: a log of 32 KiB blocks (LevelDB's format) of records in its own protocol buffers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = 32 * 1024
HEADER = 7  # of the file, and of every piece of a record: checksum, length, kind
FULL, LAST = 1, 4


class WandbFile(NamedTuple):
    """One file: the run's header, its config, what it logged by W&B's step, its summary and its exit code."""

    run: Any
    config: dict[str, Any]
    history: dict[int, dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int | None


def _records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    record, at = b"", HEADER
    while at < len(content):
        if BLOCK - at % BLOCK < HEADER:  # filled up with zeros
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield record
            record = b""


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_wandb(path: Path) -> WandbFile:
    from wandb.proto.wandb_internal_pb2 import Record

    run, exit_code = None, None
    config: dict[str, Any] = {}
    history: dict[int, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    for content in _records(path.read_bytes()):
        record = Record.FromString(content)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                config |= _values(run.config.update)
            case "config":
                config |= _values(record.config.update)
            case "history":
                history[record.history.step.num] = _values(record.history.item)
            case "summary":
                summary |= _values(record.summary.update)
            case "exit":
                exit_code = record.exit.exit_code
    return WandbFile(run, config, history, summary, exit_code)
