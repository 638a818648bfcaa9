"""Run GENIE in worlds of several gloo processes and save what each process saw; the assertions are the test's.

A program of its own, `python distributed_worker.py FOLDER`: it imports torch once and forks every process from there.
"""

import contextlib
import copy
import datetime
import functools
import hashlib
import multiprocessing
import os
import pathlib
import sys
import time
import traceback

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

from shiftproof.optim import GENIE, GENIEAdamW

STEPS = 10
SAVED_AT = 7
WORLDS = (2, 1, 3, 4)  # 2 first: it saves the checkpoints that 1 and 3 go on from
STUCK_AFTER = 1000  # seconds that a process waits for another: long, as others may have the cores
FORMS = ("paper", "released", "adamw")  # the last is GENIEAdamW
# fused=None is whatever GENIE prefers: the compiled kernel, or foreach where there is none.
IMPLEMENTATIONS = {"default": {}, "foreach": {"fused": False}}
RUNS = {f"{form}, {name}": {"form": form, **how} for form in FORMS for name, how in IMPLEMENTATIONS.items()}
FORLOOP = {f"{form}, for-loop": {"form": form, "foreach": False} for form in FORMS}
BFLOAT16 = {
    f"{form}, {name}, bfloat16": {"form": form, "moment_dtype": torch.bfloat16, **how}
    for form in FORMS
    for name, how in IMPLEMENTATIONS.items()
}
CHECKPOINTED = {name: options for name, options in {**RUNS, **BFLOAT16}.items() if "default" in name}
OPTIONS = {"lr": 0.01, "beta": 0.9, "dropout": 0.4, "seed": 0x0123456789ABCDEF}


class Net(nn.Module):
    """Dimensions that 2 and 3 do not divide, and parameters with fewer rows than there are processes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(9, 7), nn.Linear(7, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Perceptron(nn.Module):
    """A layer for each way of tensor parallelism; 2 and 3 divide its hidden units, as torch needs."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(9, 12), nn.Linear(12, 1)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make(cls):
    net, generator = cls(), seeded(1)
    with torch.no_grad():
        for param in net.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.5)
    return net


def shard(net, **options):
    """Shard the first layer by itself and the others together."""
    fully_shard(next(net.children()), **options)
    return fully_shard(net, **options)


def parallelize(net, mesh):
    return parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def build(params, form="paper", **options):
    """A GENIE, or a GENIEAdamW, whose weight decay would hide what the mask keeps."""
    if form != "adamw":
        return GENIE(params, form=form, **options)
    beta = options.pop("beta", None)
    return GENIEAdamW(params, weight_decay=0, **({} if beta is None else {"betas": (beta, 0.99)}), **options)


def make_genie(params, **options):
    """An optimizer of two groups that differ; positions in the random stream count on from one to the other."""
    params, form = list(params), options.get("form")
    second = {"params": params[len(params) // 2 :], "lr": 0.005, "weight_decay": 0 if form == "adamw" else 0.1}
    return build([{"params": params[: len(params) // 2]}, second], **{**OPTIONS, **options})


def drawn(statistics):
    """The share of the elements on which what is drawn acts: noise, or the mask where there is none."""
    return statistics.noisy_fraction or statistics.kept_fraction


def loss_of(net, x, y):
    """The factor makes gradients large enough for every form's noise to act."""
    return 20 * (net(x) - y).square().mean()


def backward(net, step):
    generator = seeded(100 + step)
    x, y = torch.randn(16, 9, generator=generator), torch.randn(16, 1, generator=generator)
    loss_of(net, x, y).backward()


@functools.cache
def synthetic(shape, dtype, step, index):
    return 3 * torch.randn(shape, generator=seeded(1000 * step + index), dtype=dtype) + 0.5


def distributed(gradient, param, placements=None):
    """A gradient in its parameter's placements or in others."""
    if not isinstance(param, DTensor):
        return gradient.clone()
    if placements == [Partial()]:  # all of it from one process, so that the sum is exact
        local = gradient if dist.get_rank() == 0 else torch.zeros_like(gradient)
        return DTensor.from_local(local, param.device_mesh, placements, run_check=False)
    return distribute_tensor(gradient, param.device_mesh, placements or param.placements, src_data_rank=None)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_history(tensors):
    """The whole of what a tensor was, step by step; one communication for all steps."""
    one = tensors[0]
    if not isinstance(one, DTensor):
        return torch.stack(tensors)
    placements = [copy.copy(placement) for placement in one.placements]
    for i, placement in enumerate(placements):
        if isinstance(placement, _StridedShard):
            placements[i] = _StridedShard(placement.dim + 1, split_factor=placement.split_factor)
        elif placement.is_shard():
            placements[i] = Shard(placement.dim + 1)
    local = torch.stack([tensor.to_local() for tensor in tensors])
    shape = torch.Size((len(tensors), *one.shape))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, one.device_mesh, placements, run_check=False, shape=shape, stride=stride
    ).full_tensor()


class Recorder:
    """Steps an optimizer; keeps the gradients and parameters of every step."""

    def __init__(self, params, optimizer):
        self.params, self.optimizer = list(params), optimizer
        self.gradients, self.parameters = [], []

    def step(self):
        if not self.parameters:
            self._keep(self.parameters, self.params)
        self._keep(self.gradients, [param.grad for param in self.params])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._keep(self.parameters, self.params)

    def _keep(self, history, tensors):
        history.append([tensor.detach().clone() for tensor in tensors])

    def train(self, net):
        for step in range(STEPS):
            backward(net, step)
            self.step()
        return self

    def step_synthetically(self, first=0, last=STEPS, placements=None):
        """Step on gradients that depend on the step and the parameter only."""
        for step in range(first, last):
            for index, param in enumerate(self.params):
                gradient = synthetic(param.shape, param.dtype, step, index)
                param.grad = distributed(gradient, param, placements and placements[index])
            self.step()
        return self

    def replay(self, gradients):
        for step in range(len(gradients[0])):
            for param, gradient in zip(self.params, gradients, strict=True):
                param.grad = gradient[step].clone()
            self.step()
        return self

    def result(self):
        """Parameters of shape (1 + steps, ...), the last state, and how much the last step's noise acted."""
        states = [self.optimizer.state[param] for param in self.params]
        return {
            "parameters": [whole_history(values) for values in zip(*self.parameters, strict=True)],
            "state": [{name: whole(value).clone() for name, value in state.items()} for state in states],
            "noisy": [one and drawn(one) for one in self.optimizer.statistics()],
        }


def beside_one_process(recorder, options, make_optimizer=make_genie):
    """What a run of several processes gave, and what one process gives on the same gradients and plain tensors."""
    result = recorder.result()
    gradients = [whole_history(values) for values in zip(*recorder.gradients, strict=True)]
    sizes = [param.to_local().numel() for param in recorder.params]
    placements = [str(param.placements) for param in recorder.params]
    found = {"sizes": sizes, "placements": placements, "noisy here": result["noisy"]}
    if dist.get_rank() == 0:
        params = [nn.Parameter(values[0].clone()) for values in result["parameters"]]
        alone = Recorder(params, make_optimizer(params, **{**OPTIONS, **options})).replay(gradients)
        found |= {"several": result, "one": alone.result()}
    return found


# ------------------------------------------------------------------------------- checks, by the worlds they run in


def data_parallel(folder):
    """Replicas that see different data and whose torch generators differ."""
    found = {}
    for name, options in RUNS.items():
        net = DistributedDataParallel(nn.Sequential(make(Net), nn.Dropout(0.1)))
        optimizer = make_genie(net.parameters(), **options)
        torch.manual_seed(1000 + dist.get_rank())
        digests, noisy, moved_generator = [], [], False
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(net, torch.randn(8, 9), torch.randn(8, 1)).backward()
            before = torch.get_rng_state()
            optimizer.step()
            moved_generator |= not torch.equal(before, torch.get_rng_state())
            noisy += map(drawn, optimizer.statistics())
            data = b"".join(param.detach().numpy().tobytes() for param in net.parameters())
            digests.append(hashlib.sha256(data).hexdigest())
        found[name] = {
            "digests": digests,
            "noisy": max(noisy),
            "moved generator": moved_generator,
            "next draw": torch.rand(1).item(),
        }
    return found


def fully_sharded(folder):
    """FSDP2; every process sees the same batches."""
    found = {}
    for name, options in {**RUNS, **BFLOAT16}.items():
        net = shard(make(Net))
        recorder = Recorder(net.parameters(), make_genie(net.parameters(), **options)).train(net)
        found[name] = beside_one_process(recorder, options)
        if dist.get_rank() == 0 and name in RUNS:
            net = make(Net)
            recorder = Recorder(net.parameters(), make_genie(net.parameters(), **options)).train(net)
            found[name]["trained in one"] = recorder.result()
    return found


def placed(folder):
    """DTensors of many placements, shapes and types on meshes of one and two dimensions."""
    world = dist.get_world_size()
    line = init_device_mesh("cpu", (world,))
    row, column = init_device_mesh("cpu", (1, world)), init_device_mesh("cpu", (world, 1))
    cube, plane = (5, 4, 3), (7, 5)
    cases = [
        (cube, line, [Shard(0)], {}),
        (cube, line, [Shard(1)], {}),
        (cube, line, [Shard(2)], {}),
        (cube, line, [Replicate()], {}),
        ((), line, [Replicate()], {}),
        ((1,), line, [Shard(0)], {}),
        ((4,), line, [Shard(0)], {}),
        (plane, line, [Shard(1)], {"gradient": [Partial()]}),
        (plane, line, [Shard(0)], {"gradient": [Replicate()]}),
        (plane, line, [Replicate()], {"gradient": [Partial()]}),
        (plane, line, [Shard(1)], {"dtype": torch.float64}),
        (plane, line, [Shard(0)], {"dtype": torch.bfloat16}),
        (plane, line, [Shard(1)], {"dtype": torch.complex64}),
        (plane, row, [Shard(0), Shard(1)], {}),
        (plane, row, [Replicate(), Shard(0)], {}),
        (plane, column, [Shard(1), Shard(0)], {}),
        (plane, column, [Shard(0), Shard(0)], {}),
        (plane, column, [Shard(0), Replicate()], {}),
    ]
    found = {}
    for name, options in {**RUNS, **(FORLOOP if world == 2 else {})}.items():
        generator, params = seeded(2), []
        for shape, mesh, placements, how in cases:
            value = torch.randn(shape, generator=generator, dtype=how.get("dtype", torch.float32))
            params.append(nn.Parameter(distribute_tensor(value, mesh, placements)))
        recorder = Recorder(params, make_genie(params, **options))
        recorder.step_synthetically(placements=[how.get("gradient") for *_, how in cases])
        found[name] = beside_one_process(recorder, options)
    return found


def tensor_parallel(folder):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for name, options in RUNS.items():
        net = parallelize(make(Perceptron), mesh)
        recorder = Recorder(net.parameters(), make_genie(net.parameters(), **options)).train(net)
        found[name] = beside_one_process(recorder, options)
    return found


def sharded_twice(folder):
    """Meshes that cut parameters in two dimensions, or cut them and hold them twice."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found = {}
    for name, options in RUNS.items():
        net = shard(parallelize(make(Perceptron), mesh["tensor"]), mesh=mesh["data"])
        recorder = Recorder(net.parameters(), make_genie(net.parameters(), **options)).train(net)
        found[f"{name}, over tensor parallel"] = beside_one_process(recorder, options)
        net = shard(make(Net), mesh=mesh)
        recorder = Recorder(net.parameters(), make_genie(net.parameters(), **options)).train(net)
        found[f"{name}, hybrid"] = beside_one_process(recorder, options)
        # Of the second, processes hold one row or two: implementations may then differ from process to process.
        shapes, generator = [(2, 4), (3, 4), (2, 5), (3, 3)], seeded(2)
        values = [torch.randn(shape, generator=generator) for shape in shapes]
        params = [nn.Parameter(distribute_tensor(value, mesh, [Shard(0), Shard(1)])) for value in values]
        recorder = Recorder(params, build(params, **OPTIONS, **options)).step_synthetically()
        found[f"{name}, in two dimensions"] = beside_one_process(recorder, options, build)
    return found


def communication(folder):
    """The all-reduces of a step, and the number of all its collectives."""
    world = dist.get_world_size()
    mesh = init_device_mesh(
        "cpu", (2, 2) if world == 4 else (world,), mesh_dim_names=("data", "tensor")[: 1 + world // 4]
    )
    kinds = ("sharded twice",) if world == 4 else ("sharded", "replicated", "plain")
    found = {}
    for name, options in RUNS.items():
        for kind in kinds:
            net = make(Perceptron if kind == "sharded twice" else Net)
            if kind == "sharded":
                shard(net)
            elif kind == "sharded twice":
                shard(parallelize(net, mesh["tensor"]), mesh=mesh["data"])
            params = list(net.parameters())
            if kind == "replicated":
                params = [nn.Parameter(distribute_tensor(param.detach(), mesh, [Replicate()])) for param in params]
            optimizer = make_genie(params, **options)
            counts = []
            for step in range(3):
                for index, param in enumerate(params):
                    param.grad = distributed(synthetic(param.shape, param.dtype, step, index), param)
                with CommDebugMode() as everything, recorded_all_reduces() as shapes:
                    optimizer.step()
                counts.append((shapes, everything.get_total_counts()))
            found[f"{name}, {kind}"] = counts
    return found


@contextlib.contextmanager
def recorded_all_reduces():
    shapes, all_reduce = [], dist.all_reduce

    def recording(tensor, *args, **kwargs):
        shapes.append(tuple(tensor.shape))
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = recording
    try:
        yield shapes
    finally:
        dist.all_reduce = all_reduce


def checkpoints(folder):
    """World 2 saves after some steps and goes on; other worlds go on from what it saved, with a fresh optimizer."""
    found = {}
    for name, options in CHECKPOINTED.items():
        path = folder / "checkpoints" / name
        net = shard(make(Net)) if dist.is_initialized() else make(Net)
        if dist.is_initialized() and dist.get_world_size() == 2:
            optimizer = make_genie(net.parameters(), **options)
            Recorder(net.parameters(), optimizer).step_synthetically(0, SAVED_AT)
            model_state, optimizer_state = get_state_dict(net, optimizer)
            dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)
        else:
            for param in net.parameters():
                param.detach().zero_()
            # Only what shapes the state is given; all else that the run depends on is in the checkpoint.
            groups = [{"params": group["params"]} for group in make_genie(net.parameters()).param_groups]
            optimizer = build(groups, form=options["form"], moment_dtype=options.get("moment_dtype"))
            model_state, optimizer_state = get_state_dict(net, optimizer)
            loaded = {"model": model_state, "optimizer": optimizer_state}
            dcp.load(loaded, checkpoint_id=path)
            set_state_dict(net, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        found[name] = Recorder(net.parameters(), optimizer).step_synthetically(SAVED_AT).result()
        if not dist.is_initialized():
            net = make(Net)
            undisturbed = Recorder(net.parameters(), make_genie(net.parameters(), **options))
            found[name]["undisturbed"] = undisturbed.step_synthetically().result()
    return found


def full_state_dicts(folder):
    """A full state dict on the first process, broadcast into another sharded optimizer."""
    saving = StateDictOptions(full_state_dict=True, cpu_offload=True)
    loading = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    found = {}
    for name, options in CHECKPOINTED.items():
        net, other = shard(make(Net)), shard(make(Net))
        optimizer, fresh = (make_genie(each.parameters(), **options) for each in (net, other))
        Recorder(net.parameters(), optimizer).step_synthetically(0, SAVED_AT)
        # A copy, as torch's loading shares what it need not convert with the optimizer that it came from.
        model_state, optimizer_state = copy.deepcopy(get_state_dict(net, optimizer, options=saving))
        set_model_state_dict(other, model_state, options=loading)
        set_optimizer_state_dict(other, fresh, optimizer_state, options=loading)
        found[name] = {
            "undisturbed": Recorder(net.parameters(), optimizer).step_synthetically(SAVED_AT).result(),
            "loaded": Recorder(other.parameters(), fresh).step_synthetically(SAVED_AT).result(),
        }
    return found


def primed(folder):
    """A fresh optimizer; one whose state torch's checkpoints asked for; and one that created its state before."""
    found = {}
    for form in FORMS:
        for kind in ("fresh", "asked", "created"):
            net = shard(make(Net)) if dist.is_initialized() else make(Net)
            optimizer = make_genie(net.parameters(), form=form)
            entries = {}
            if kind == "created":
                optimizer.init_state()
            if kind != "fresh":
                state = get_optimizer_state_dict(net, optimizer)["state"]
                entries = {
                    name: {key: whole(value).clone() for key, value in one.items()} for name, one in state.items()
                }
            steps = [state["step"].item() for state in optimizer.state.values()]
            result = Recorder(net.parameters(), optimizer).step_synthetically(0, 3).result()
            found[f"{form}, {kind}"] = {"entries": entries, "steps": steps, **result}
    return found


def refused(folder):
    """Local parts that are no box of the whole."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    local = torch.zeros(4, 3)
    param = nn.Parameter(DTensor.from_local(local, mesh, [_StridedShard(0, split_factor=2)], run_check=False))
    param.grad = torch.ones_like(param)
    try:
        GENIE([param]).step()
    except RuntimeError as error:
        return str(error)
    return None


CHECKS = {
    1: [checkpoints, primed],
    2: [
        data_parallel,
        fully_sharded,
        placed,
        tensor_parallel,
        communication,
        checkpoints,
        full_state_dicts,
        primed,
        refused,
    ],
    3: [data_parallel, fully_sharded, placed, tensor_parallel, communication, checkpoints],
    4: [sharded_twice, communication],
}


# ---------------------------------------------------------------------------------------------------- processes


def run_process(rank, world, folder):
    torch.set_num_threads(1)
    found = {}
    try:
        if world > 1:
            limit = datetime.timedelta(seconds=STUCK_AFTER)
            store = dist.FileStore(str(folder / f"store {world}"), world)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
        for check in CHECKS[world]:
            started = time.monotonic()
            found[check.__name__] = check(folder)
            if rank == 0:
                print(world, check.__name__, f"{time.monotonic() - started:.1f} s", flush=True)
    except Exception:
        found["error"] = traceback.format_exc()
    torch.save(found, folder / f"{world} {rank}.pt")
    os._exit("error" in found)  # without the teardown, which waits for processes that may be gone


def run_world(world, folder):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_process, args=(rank, world, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return all(process.exitcode == 0 for process in processes)


def main(folder):
    succeeded = [run_world(world, folder) for world in WORLDS]
    return all(succeeded)


if __name__ == "__main__":
    sys.exit(not main(pathlib.Path(sys.argv[1])))
