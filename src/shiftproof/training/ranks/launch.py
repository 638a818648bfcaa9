"""The processes that train one run, started by `torchrun` or by ourselves on this machine."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import ProcessException, start_processes

from shiftproof.base.processes import START_METHOD, adopt, end_with_parent, preload
from shiftproof.training.ranks.split import STRATEGIES, Ranks, Strategy

Work = Callable[[Ranks, torch.device], None]
"""The work of a process, given its rank and its device."""
PRELOADED = "shiftproof.training.preload"
"""The module that imports everything that training needs."""


def check_devices(device: str, devices: int, strategy: str) -> None:
    """Raise ValueError unless a run can be trained on ``devices`` devices of the kind ``device`` by ``strategy``."""
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy '{strategy}'; the strategies are {', '.join(STRATEGIES)}")
    if devices < 1:
        raise ValueError(f"devices must be at least 1, not {devices}")
    if from_torchrun():
        if devices > 1:
            raise ValueError("torchrun has started the processes: leave out the number of devices")
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
    elif devices == 1:
        return
    if device not in ("cpu", "cuda"):
        raise ValueError(f"several devices must be of the kind cpu or cuda, not {device}")
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"{devices} GPUs were requested, but there are {torch.cuda.device_count()}")


def from_torchrun() -> bool:
    """Return whether `torchrun` started this process, as one of several."""
    return distributed.is_torchelastic_launched()


@contextmanager
def torchrun_group(device: str, strategy: Strategy) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that `torchrun` started, and yield this one's `Ranks` and device.

    Args:
        device: "cpu" or "cuda".
        strategy: how the processes share the run.
    """
    end_with_parent()
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    with _group(Ranks(rank, size, strategy), device, local, "env://") as place:
        yield place


def launch(work: Work, device: str, devices: int, strategy: Strategy) -> None:
    """Do some work in one process per device, and wait for all of them.

    Args:
        work: the work; it must be picklable.
        device: "cpu" or "cuda".
        devices: number of processes.
        strategy: how the processes share a run.

    Raises:
        ChildProcessError: one of the processes raised or died; the others are stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (work, device, devices, strategy, Path(folder), dict(os.environ))
        preload(PRELOADED)
        processes = start_processes(  # type: ignore[no-untyped-call]
            _work, arguments, devices, join=False, daemon=True, start_method=START_METHOD
        )
        try:
            while not processes.join():
                pass
        except ProcessException as error:
            # A process killed by a signal is the cause. Others lost the connection to it, and may have been found dead
            # first; SIGTERM is how torch stops the rest.
            for rank, process in enumerate(processes.processes):
                if process.exitcode < 0 and process.exitcode != -signal.SIGTERM:
                    ended = signal.Signals(-process.exitcode).name
                    raise ChildProcessError(
                        f"process {rank} of {devices} was killed: process {rank} terminated with signal {ended}"
                    ) from error
            # the first error written is the cause; the other processes lost the connection to that one
            if errors := sorted(Path(folder).glob("*.error"), key=lambda file: file.stat().st_mtime_ns):
                reason = errors[0].read_text(encoding="utf-8")
                raise ChildProcessError(f"process {errors[0].stem} of {devices} failed: {reason}") from error
            ended = str(error).strip().splitlines()[-1]
            raise ChildProcessError(f"process {error.error_index} of {devices} was killed: {ended}") from error


def _work(
    rank: int,
    work: Work,
    device: str,
    devices: int,
    strategy: Strategy,
    folder: Path,
    environment: Mapping[str, str],
) -> None:
    end_with_parent()  # torch only sends an interrupt, which a process waiting for others does not notice
    adopt(environment)
    try:
        with _group(Ranks(rank, devices, strategy), device, rank, (folder / "meeting").as_uri()) as (ranks, own):
            work(ranks, own)
    except Exception as error:
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


@contextmanager
def _group(ranks: Ranks, device: str, local: int, meeting: str) -> Iterator[tuple[Ranks, torch.device]]:
    own = torch.device(device, local) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    distributed.init_process_group(
        "nccl" if own.type == "cuda" else "gloo", init_method=meeting, rank=ranks.rank, world_size=ranks.size
    )
    yield ranks, own
    distributed.barrier()
    distributed.destroy_process_group()  # not after an error, when it would wait for processes that wait for this one
