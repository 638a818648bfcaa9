"""Steps under DDP and FSDP2 in a world of one process, beside steps without: `python -m benchmarks.check_gpu.world`.

Takes a device and a file, to which it writes the backend and, of every case, by how much the weights differ, as a share
of the way that they went. NCCL on a GPU, gloo on the CPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

from shiftproof.base.files import write_json
from shiftproof.optim import GENIE, SAM, GENIEAdamW

STEPS = 5
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "GENIEAdamW": partial(GENIEAdamW, lr=0.01, dropout=0.4, seed=3),
    "GENIE paper": partial(GENIE, form="paper", lr=0.02, seed=3),
    "GENIE released": partial(GENIE, form="released", lr=0.02, seed=3),
    "SAM around SGD": partial(SAM, base=SGD, lr=0.1),
    "SAM around GENIE": partial(SAM, base=GENIE, lr=0.02, seed=3),
}


def differences(device: torch.device) -> dict[str, float]:
    """Return by how much weights differ from those without a world, by optimizer and strategy."""
    mesh = init_device_mesh(device.type, (1,))

    def sharded(net: nn.Module) -> nn.Module:
        for layer in (*net.children(), net):
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        return net

    strategies: dict[str, Callable[[nn.Module], nn.Module]] = {"DDP": DistributedDataParallel, "FSDP2": sharded}
    found = {}
    for name, build in OPTIMIZERS.items():
        start = _weights(_net(device))
        expected = _trained(_net(device), build)
        for strategy, wrap in strategies.items():
            difference = _trained(wrap(_net(device)), build) - expected
            found[f"{name}, {strategy}"] = float(difference.norm() / (expected - start).norm())
    return found


def _net(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5)).to(device)


def _trained(net: nn.Module, build: Callable[[Iterable[Tensor]], Optimizer]) -> Tensor:
    optimizer = build(net.parameters())
    device = next(net.parameters()).device
    for step in range(STEPS):
        random = torch.Generator().manual_seed(step)
        inputs = torch.randn(32, 24, generator=random).to(device)
        labels = torch.randint(5, (32,), generator=random).to(device)

        def closure(inputs: Tensor = inputs, labels: Tensor = labels) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()

        optimizer.step(closure)
    return _weights(net)


def _weights(net: nn.Module) -> Tensor:
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
    return torch.cat([p.detach().double().flatten() for p in whole])


if __name__ == "__main__":
    where, file = torch.device(sys.argv[1]), Path(sys.argv[2])
    backend = "nccl" if where.type == "cuda" else "gloo"
    if where.type == "cuda":
        torch.cuda.set_device(0)
    with tempfile.TemporaryDirectory() as meeting:
        distributed.init_process_group(backend, init_method=(Path(meeting) / "world").as_uri(), rank=0, world_size=1)
        write_json(file, {"backend": backend, "differences": differences(where)})
        distributed.destroy_process_group()
