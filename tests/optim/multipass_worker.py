"""Run the multi-pass optimizers in two gloo processes beside one; the assertions are the test's.

A program of its own, `python multipass_worker.py FOLDER`: it imports torch once and forks both processes from there.
"""

import copy
import datetime
import multiprocessing
import os
import pathlib
import sys
import traceback

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from shiftproof.optim import ASAM, FAD, GAM, GENIE, GSAM, SAGM, SAM

WORLD = 2
STEPS = 4
STUCK_AFTER = 1000  # seconds that a process waits for another: long, as others may have the cores
OPTIMIZERS = {cls.__name__: cls for cls in (SAM, ASAM, GSAM, SAGM, GAM, FAD)}
RELATIVE = ("SAM", "GSAM", "SAGM", "FAD")  # those whose radius can be a share of the weights' norms


class Net(nn.Module):
    """Dimensions that 2 does not divide, and a parameter with fewer rows than there are processes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(9, 7), nn.Linear(7, 5), nn.Linear(5, 1)
        self.extra = nn.Parameter(torch.ones(()))  # for a process that uses it

    def forward(self, x, extra=False):
        out = self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out * self.extra if extra else out


def make_net(dtype=torch.float64):
    torch.manual_seed(1)
    net = Net().to(dtype)
    net.extra.requires_grad_(False)
    return net


def batch(step, rank=None, dtype=torch.float64):
    """The whole batch of a step, or a process's half."""
    generator = torch.Generator().manual_seed(100 + step)
    x, y = (torch.randn(16, size, generator=generator, dtype=dtype) for size in (9, 1))
    half = slice(None) if rank is None else slice(8 * rank, 8 * rank + 8)
    return x[half], y[half]


def closure_of(net, optimizer, x, y, extra=False):
    def closure():
        optimizer.zero_grad()
        loss = (net(x, extra) - y).square().mean()
        loss.backward()
        return loss.detach()

    return closure


def train(net, optimizer, rank=None, dtype=torch.float64, steps=range(STEPS)):
    for step in steps:
        optimizer.step(closure_of(net, optimizer, *batch(step, rank, dtype)))
    return parameters(net)


def parameters(net):
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    return [p.detach().clone() for p in whole]


def sharded(net):
    net.extra = nn.Parameter(net.extra[None].clone(), requires_grad=False)  # FSDP2 shards no scalars
    fully_shard(net.first)
    return fully_shard(net)


def fully_sharded(cls, folder):
    """Both processes see the same batches, in float32."""
    net, alone = sharded(make_net(torch.float32)), make_net(torch.float32)
    options = {"rho": 0.3, "lr": 0.05, "momentum": 0.9}
    several = train(net, cls(net.parameters(), torch.optim.SGD, **options), dtype=torch.float32)
    return {
        "several": several,
        "one": train(alone, cls(alone.parameters(), torch.optim.SGD, **options), dtype=torch.float32),
    }


def relative_radius(cls, folder):
    """As `fully_sharded`; the first layer has its radius as a distance, and the rest of the weights in their units."""
    found = {}
    for kind in ("several", "one"):
        net = make_net(torch.float32)
        if kind == "several":
            net = sharded(net)
        first = list(net.first.parameters())
        others = [*net.second.parameters(), *net.last.parameters()]
        groups = [{"params": first, "relative_rho": None}, {"params": others}]
        optimizer = cls(groups, torch.optim.SGD, rho=0.3, relative_rho=0.2, lr=0.05, momentum=0.9)
        found[kind] = train(net, optimizer, dtype=torch.float32)
    return found


def one_direction(cls, folder):
    """Replicas on halves of a batch, beside one process on the whole."""
    net = DistributedDataParallel(make_net(), gradient_as_bucket_view=True)
    alone = make_net()
    options = {"rho": 0.3, "lr": 0.05, "momentum": 0.9}
    return {
        "several": train(net, cls(net.parameters(), torch.optim.SGD, **options), dist.get_rank()),
        "one": train(alone, cls(alone.parameters(), torch.optim.SGD, **options)),
    }


def own_directions(cls, folder):
    """Replicas that ascend by their own gradients, beside the mean of what each would step with.

    A parameter is used by one process only; another by none.
    """
    rank = dist.get_rank()
    alone = make_net()
    alone.extra.requires_grad_(True)
    alone.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    net = DistributedDataParallel(copy.deepcopy(alone), find_unused_parameters=True)
    optimizer = cls(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.05, momentum=0.9, no_sync=net.no_sync)
    plain = torch.optim.SGD(alone.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        loss = optimizer.step(closure_of(net, optimizer, *batch(step, rank), extra=rank == 0))
        gradients = []
        for other in range(WORLD):
            one = copy.deepcopy(alone)
            stepped = cls(one.parameters(), torch.optim.SGD, rho=0.3, lr=0.0)
            its_loss = stepped.step(closure_of(one, stepped, *batch(step, other), extra=other == 0))
            gradients.append([p.grad for p in one.parameters()])
            assert other != rank or torch.isclose(loss, its_loss)
        for p, first, second in zip(alone.parameters(), *gradients, strict=True):
            if first is not None or second is not None:
                p.grad = sum(g for g in (first, second) if g is not None) / WORLD
        plain.step()
    return {"several": parameters(net), "one": parameters(alone), "unused": net.module.unused.grad}


def checkpoints(cls, folder):
    """Train, save, go on; and go on from what was saved, with a fresh optimizer."""
    found = {}
    for base, options in ((torch.optim.Adam, {"lr": 0.01}), (GENIE, {"lr": 0.1, "moment_dtype": "bfloat16"})):
        path = folder / "checkpoints" / cls.__name__ / base.__name__
        net = sharded(make_net(torch.float32))
        optimizer = cls(net.parameters(), base, **options)
        train(net, optimizer, dtype=torch.float32)
        model_state, state = get_state_dict(net, optimizer)
        dcp.save({"model": model_state, "optimizer": state}, checkpoint_id=path)
        rest = {"dtype": torch.float32, "steps": range(STEPS, 2 * STEPS)}
        several = train(net, optimizer, **rest)
        other = sharded(make_net(torch.float32))
        fresh = cls(other.parameters(), base, rho=7.0, **options)
        model_state, state = get_state_dict(other, fresh)
        loaded = {"model": model_state, "optimizer": state}
        dcp.load(loaded, checkpoint_id=path)
        set_state_dict(other, fresh, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        found[base.__name__] = {"several": several, "one": train(other, fresh, **rest)}
    return found


CHECKS = (fully_sharded, one_direction, own_directions, checkpoints)


def run_process(rank, folder):
    torch.set_num_threads(1)
    found = {}
    try:
        limit = datetime.timedelta(seconds=STUCK_AFTER)
        store = dist.FileStore(str(folder / "store"), WORLD)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=limit)
        for check in CHECKS:
            found[check.__name__] = {name: check(cls, folder) for name, cls in OPTIMIZERS.items()}
        found[relative_radius.__name__] = {name: relative_radius(OPTIMIZERS[name], folder) for name in RELATIVE}
    except Exception:
        found["error"] = traceback.format_exc()
    torch.save(found, folder / f"{rank}.pt")
    os._exit("error" in found)  # without the teardown, which waits for processes that may be gone


def main(folder):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_process, args=(rank, folder)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return all(process.exitcode == 0 for process in processes)


if __name__ == "__main__":
    sys.exit(not main(pathlib.Path(sys.argv[1])))
