"""What all tests of clients have in common: they are imported when needed, and none reaches the network."""

import importlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from accelerate_state import forget_accelerate

GUIDE = Path(__file__).parents[2] / "docs" / "how_to" / "clients.md"


@pytest.fixture(scope="session")
def client() -> Callable[[str], ModuleType]:
    """A function that imports a client when a test needs it: importing all of them takes ten seconds."""

    def import_client(name: str) -> ModuleType:
        if os.environ.get("CI") == "true":  # there a client that is missing is a failure
            return importlib.import_module(name)
        return pytest.importorskip(name)

    return import_client


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """Leave the process as it was, and fail where anything looks up a host, be it to load a model or to report its use.

    In its environment the Trainer keeps its precision for accelerate to find. With several threads, these small models
    wait for them ten times as long as they compute, while other tests run beside them.
    """
    asked = []
    threads = torch.get_num_threads()

    def refuse(host: object, *args: object, **kwargs: object) -> None:
        asked.append(host)
        raise socket.gaierror(f"{host}: the clients' tests stay offline")

    torch.set_num_threads(1)
    with mock.patch.dict(os.environ), mock.patch.object(socket, "getaddrinfo", refuse):
        yield
    forget_accelerate()  # which peft and the Trainer use too
    torch.set_num_threads(threads)
    assert asked == []


@pytest.fixture(scope="session")
def run_guide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """A function that runs the guide's introduction and one of its sections, and returns the names they define."""

    def run(title: str) -> dict[str, Any]:
        introduction, *sections = re.split(r"^## ", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
        [section] = [section for section in sections if section.splitlines()[0] == title]
        names: dict[str, Any] = {"__name__": "guide"}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("guide"))
            for block in re.findall(r"```python\n(.*?)```", introduction + section, re.DOTALL):
                exec(block, names)  # noqa: S102
        return names

    return run
