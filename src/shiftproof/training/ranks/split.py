"""One run on several devices: every rank computes the features of its own rows, and everything else for all rows.

On each rank the featurizer computes rows ``rank, rank + size, ...`` of a batch, and its outputs are gathered
differentiably from all ranks. So every objective sees the same features as on one device, and loss, heads and their
gradients are the same on every rank. Only the featurizer's gradients are those of a rank's own rows, which DDP or
FSDP2 average.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from shiftproof.algorithms import Algorithm
from shiftproof.models import Network
from shiftproof.training.averaging import State

Strategy = Literal["ddp", "fsdp"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp")


class Ranks(NamedTuple):
    """The place of this process among those that train a run.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        strategy: "ddp" for a whole network on every rank, or "fsdp" for parameters, gradients and the optimizer's
            state sharded over the ranks (FSDP2).
    """

    rank: int = 0
    size: int = 1
    strategy: Strategy = "ddp"

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and reports."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether this process holds only a part of the parameters."""
        return self.size > 1 and self.strategy == "fsdp"

    def agreed(self, values: Tensor) -> Tensor:
        """Return the first rank's values on every rank."""
        if self.size > 1:
            values = values.clone()
            distributed.broadcast(values, src=0)
        return values

    def check_same(self, what: str, value: Tensor) -> None:
        """Raise RuntimeError unless a scalar is the same on all ranks and not NaN; ranks wait for each other here."""
        if self.size == 1:
            return
        values = [torch.empty_like(value) for _ in range(self.size)]
        distributed.all_gather(values, value)
        if any(bool(one != value) for one in values):
            raise RuntimeError(f"the devices differ in {what}: {', '.join(str(one.item()) for one in values)}")

    def all(self, condition: Tensor) -> bool:
        """Return whether a scalar tensor is true on every rank."""
        if self.size > 1:
            condition = condition.to(torch.float32, copy=True)
            distributed.all_reduce(condition, op=distributed.ReduceOp.MIN)
        return bool(condition)


ALONE = Ranks()


class _Gathered(torch.autograd.Function):
    """The rows of all ranks, equally many of each, interleaved: row i comes from rank i modulo the number of ranks.

    All ranks compute the same loss from them, so the gradient of a rank's rows needs no communication. It is multiplied
    by the number of ranks, because DDP and FSDP2 divide the sum by it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size, ctx.rank = distributed.get_world_size(), distributed.get_rank()
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ctx.size)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own: Tensor = gradient[ctx.rank :: ctx.size] * ctx.size
        return own


class _Replica(DistributedDataParallel):
    """DDP whose state has the names of the wrapped module, so that it fits any number of ranks."""

    def __init__(self, module: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # older versions lack the argument's new name
            super().__init__(module, broadcast_buffers=False)
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.state_dict(*args, **kwargs)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}module.{name.removeprefix(prefix)}"] = state.pop(name)


def split_over_ranks(algorithm: Algorithm, ranks: Ranks) -> None:
    """Make the network compute only its own rows' features on every rank; call this before building optimizers.

    Args:
        algorithm: the algorithm on its device, identical on every rank.
        ranks: the ranks of an initialised process group.

    Raises:
        ValueError: results would differ from one device, because the featurizer has batch norms in training mode, on
            CPUs, or draws random numbers.
    """
    if ranks.size == 1:
        return
    network = algorithm.network
    check_featurizer(network.featurizer, next(network.parameters()).device)
    names = {module: name for name, module in network.featurizer.named_modules()}
    frozen = [names[module] for module in network.frozen]
    network.featurizer = synchronised(network.featurizer)
    network.frozen = tuple(network.featurizer.get_submodule(name) for name in frozen)
    if ranks.sharded:
        _gather_features(network.featurizer, ranks)
        _shard(algorithm)
    else:
        if any(p.requires_grad for p in network.featurizer.parameters()):  # DDP refuses modules without
            network.featurizer = _Replica(network.featurizer)
        _gather_features(network.featurizer, ranks)


def whole_featurizer(network: Network) -> nn.Module:
    """Return a network's featurizer with the names that its parts had before it was split over ranks."""
    featurizer: nn.Module = network.featurizer
    return featurizer.module if isinstance(featurizer, _Replica) else featurizer


def _gather_features(featurizer: nn.Module, ranks: Ranks) -> None:
    """Make a featurizer compute the features of this rank's rows and return those of all rows."""
    count = 0  # number of images in the current forward pass

    def own_rows(_: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor:
        nonlocal count
        (images,) = arguments
        count = len(images)
        # all ranks need equally many rows, so the last row is repeated if there are too few
        own = torch.arange(ranks.rank, -(-count // ranks.size) * ranks.size, ranks.size, device=images.device)
        return images[own.clamp_max(count - 1)]

    def all_features(_: nn.Module, arguments: tuple[Tensor, ...], features: Tensor) -> Tensor:
        gathered: Tensor = _Gathered.apply(features)
        return gathered if count == len(gathered) else gathered[:count]

    featurizer.register_forward_pre_hook(own_rows)
    featurizer.register_forward_hook(all_features)


def synchronised(featurizer: nn.Module) -> nn.Module:
    """Return a featurizer whose batch norms in training mode see the batches of all ranks."""
    if not any(isinstance(module, _BatchNorm) and module.training for module in featurizer.modules()):
        return featurizer
    from timm.layers import convert_sync_batchnorm  # keeps the activations inside timm's batch norms, unlike torch's

    converted: nn.Module = convert_sync_batchnorm(featurizer)
    return converted


def check_featurizer(featurizer: nn.Module, device: torch.device) -> None:
    """Raise ValueError if parts of a batch get other features than the whole batch; see `split_over_ranks`."""
    for name, module in featurizer.named_modules():
        if isinstance(module, _BatchNorm) and module.training and device.type == "cpu":
            raise ValueError(
                f"the batch norm {name} of the model follows the batches, of which CPUs would each see a part: train "
                "on one device, or on GPUs"
            )
        if _drops(module):
            raise ValueError(f"{name} of the model drops at random, which devices would do alike: train on one device")


def _drops(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return bool(module.p)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout)
    return bool(getattr(module, "drop_prob", 0.0))  # timm's DropPath


def _shard(algorithm: Algorithm) -> None:
    """Shard the featurizer child by child, and every other module that has its own parameters."""
    from torch.distributed.fsdp import fully_shard

    featurizer = algorithm.network.featurizer
    inside = set(featurizer.modules())
    for child in _called(featurizer):
        if any(True for _ in child.parameters()):
            fully_shard(child, reshard_after_forward=True)
    fully_shard(featurizer, reshard_after_forward=True)
    for module in algorithm.modules():
        if module not in inside and any(True for _ in module.parameters(recurse=False)):
            fully_shard(module, reshard_after_forward=True)


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children that a module calls, replacing containers by their members: lists are not called."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            yield from _called(child)
        else:
            yield child


def full_state(module: nn.Module) -> State:
    """Return a module's state with whole tensors; all ranks must call this if it is sharded."""
    return {name: _whole(tensor) for name, tensor in module.state_dict().items()}


def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state of whole tensors; a sharded module keeps only its parts.

    Raises:
        RuntimeError: the state does not fit this module.
    """
    own = module.state_dict()
    module.load_state_dict({name: _like(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with whole tensors; all ranks must call this if it is sharded."""
    state = optimizer.state_dict()
    return {**state, "state": {i: {k: _whole(v) for k, v in own.items()} for i, own in state["state"].items()}}


def load_full_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state of whole tensors; with sharded parameters it keeps only its parts.

    Raises:
        ValueError: the state does not fit this optimizer.
        KeyError: likewise.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {i: {k: _like(v, parameters[i]) for k, v in entries.items()} for i, entries in state["state"].items()}
    optimizer.load_state_dict({**state, "state": own})


def _whole(value: Any) -> Any:
    return value.full_tensor() if _is_sharded(value) else value


def _like(value: Any, like: Any) -> Any:
    """Return a whole tensor sharded like ``like``, if that is sharded and has the same shape."""
    if not _is_sharded(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")
