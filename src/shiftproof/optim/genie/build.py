"""The compiled CPU kernel: taken from the package or the cache, or else compiled into the cache, once per machine."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from shiftproof.base.files import cache_folder, locked, write_bytes

SOURCES = Path(__file__).parent / "kernel"
PREBUILT = SOURCES / "genie_kernel.so"
_STABLE_ABI = "0x020a000000000000"  # of torch 2.10; the binary runs with it and all later ones
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-w")
# No -ffast-math: it changes results, and a library linked with it flushes denormal numbers in the whole process.
_KERNEL_FLAGS = ("-fno-math-errno", "-fno-trapping-math")
_INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
    "baseline": (),
}
_X86 = ("x86_64", "AMD64")


class KernelError(RuntimeError):
    """The compiled kernel is not available; the message says why."""


class NoCompilerError(KernelError):
    """There is no compiler; unlike other failures this is not recorded, because one may be installed later."""


def is_settled() -> bool:
    """Return whether `kernel_error` can answer without compiling anything."""
    if kernel_error.cache_info().currsize > 0 or os.path.exists(PREBUILT):
        return True
    try:
        return any(os.path.exists(_cached().with_suffix(suffix)) for suffix in (".so", ".failed"))
    except KernelError:
        return True


@cache
def kernel_error() -> str | None:
    """Load the kernel's operators into torch; return None, or the reason if that fails.

    If necessary this first compiles them, which takes about 20 seconds. Processes that need the kernel at the same time
    compile it once between them. A failed compilation is not retried. Without a kernel a line on standard error says
    so, once a process.
    """
    try:
        _load()
    except KernelError as error:
        reason = str(error).partition("\n")[0]
        print(f"shiftproof: GENIE steps in plain PyTorch, which is slower: {reason}", file=sys.stderr)
        return reason
    return None


def _load() -> None:
    path = PREBUILT
    if not os.path.exists(path):  # Path.exists would raise where a folder is closed to this user
        path = _cached()
        if not os.path.exists(path):
            _compile_once(path)
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        raise KernelError(f"the CPU kernel {path} cannot be loaded: {error}") from error


def _cached() -> Path:
    digest = hashlib.sha256(f"{torch.__version__} {platform.machine()} {_FLAGS} {_KERNEL_FLAGS}".encode())
    for source in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(source.read_bytes())
    name = f"genie-{digest.hexdigest()[:16]}.so"
    try:
        return cache_folder(holding=name) / name
    except OSError as error:
        raise KernelError(f"the CPU kernel cannot be kept: {error}") from error


def _compile_once(target: Path) -> None:
    failed = target.with_suffix(".failed")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            target.with_suffix(".lock"), "shiftproof: waiting for another process that compiles GENIE's kernel"
        ):
            if target.exists():
                return
            if failed.exists():
                reason = failed.read_text(encoding="utf-8").partition("\n")[0]
                raise KernelError(f"the CPU kernel was not compiled: {reason} (delete {failed} to try again)")
            try:
                _compiler()  # raises before the message if there is none
                said = "shiftproof: GENIE's CPU kernel is not in the package: compiling it, once for this machine"
                print(said, file=sys.stderr)
                compile_kernel(target)
            except NoCompilerError:
                raise
            except KernelError as error:
                write_bytes(failed, str(error).encode())
                raise
    except OSError as error:
        raise KernelError(f"the CPU kernel cannot be kept in {target.parent}: {error}; set SHIFTPROOF_CACHE") from error


def compile_kernel(target: Path) -> None:
    """Compile the kernel to a file, which appears only once it is complete.

    Raises:
        KernelError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    if sys.platform == "win32":
        raise KernelError("the CPU kernel needs GCC or Clang, and is not compiled on Windows")
    include = Path(torch.__file__).parent / "include"
    names = _INSTRUCTION_SETS if platform.machine() in _X86 else {"baseline": ()}
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [Path(folder) / f"{name}.o" for name in ("operators", *names)]
        commands = [
            [*_FLAGS, f"-DTORCH_TARGET_VERSION={_STABLE_ABI}", f"-I{include}", "-c", str(SOURCES / "operators.cpp")],
            *(
                [*_FLAGS, *_KERNEL_FLAGS, *flags, f"-DKERNEL={name}_kernel", "-c", str(SOURCES / "genie.cpp")]
                for name, flags in names.items()
            ),
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(lambda job: _run([compiler, *job[0], "-o", str(job[1])]), zip(commands, objects, strict=True))
            )
        linked = Path(folder) / target.name
        libraries = Path(torch.__file__).parent / "lib"
        _run([compiler, "-shared", *map(str, objects), f"-L{libraries}", "-ltorch_cpu", "-o", str(linked)])
        linked.replace(target)


def _compiler() -> str:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise NoCompilerError("there is no C++ compiler (c++, g++, clang++ or $CXX)")
    return compiler


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise KernelError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        first = next((line for line in lines if "error" in line), f"exit status {done.returncode}")
        raise KernelError(f"{command[0]} failed: {first}\n" + "\n".join(lines[-50:]))
