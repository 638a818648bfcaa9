"""The contract of a domain-generalization algorithm, which defines what training minimises.

An algorithm has three levels, and each defaults to the one before. Nearly all algorithms define only
`Algorithm.objective`. Algorithms that compose gradients define `Algorithm.backward`, and those that alternate several
optimizers define `Algorithm.update`. None of them knows which optimizer steps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shiftproof.base.batch import Batch
from shiftproof.base.choices import KINDS, TASKS, Kind, Task
from shiftproof.base.hparams import Hparam
from shiftproof.base.registry import Registry
from shiftproof.models import Network

Closure = Callable[[], Tensor]
"""Zeroes the gradients, computes the loss, leaves its gradients, and returns the detached loss."""


class MakeClosure(Protocol):
    """Builds the closures of a step."""

    def __call__(self, batches: Sequence[Batch], /, *, annealed: bool = True) -> Closure:
        """Return a closure for an optimizer's ``step``, which evaluates the gradients on some batches.

        Args:
            batches: one batch per domain, for all domains or some.
            annealed: whether the annealer edits the gradients and the closure counts as a pass of the run. False for
                modules trained beside the network, such as a discriminator.
        """


class SingleDomainWarning(UserWarning):
    """An algorithm that compares source domains has only one, and so reduces to ERM."""


class OptimizerFactory(Protocol):
    """Builds the run's kind of optimizer over given parameters."""

    def __call__(
        self,
        params: Iterable[nn.Parameter],
        *,
        name: str = "all",
        lr_ratio: float = 1.0,
        weight_decay: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
    ) -> Optimizer:
        """Return a new optimizer over the parameters.

        Args:
            params: the parameters.
            name: key of its random numbers, together with the run's seed; each optimizer of a run needs its own.
            lr_ratio: its learning rate divided by the run's.
            weight_decay: weight decay; None for the run's.
            beta1: decay of the first moment, for optimizers with Adam's ``betas``; None keeps theirs, and other
                optimizers ignore it.
            beta2: the same for the second moment.
        """


class Algorithm(nn.Module):
    """Base of training algorithms; subclass it and define `objective`.

    Keep everything that a run must remember in parameters, buffers or optimizers made by the factory: a checkpoint
    holds exactly these.

    Args:
        network: the network to train.
        num_domains: number of source domains; every call gets one batch of each, always in the same order.

    Examples:
        >>> import torch
        >>> from shiftproof.algorithms import Algorithm
        >>> class WorstDomain(Algorithm):
        ...     def objective(self, batches):
        ...         return torch.stack(self.domain_losses(batches)).max()
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {}
    """Hyperparameters by name; a subclass takes them as keyword arguments."""

    short_hparams: ClassVar[Mapping[str, Hparam]] = {}
    """Hyperparameters that searches for short runs replace: numbers of steps, scaled down in proportion."""

    hparams_on: ClassVar[Mapping[str, Mapping[str, Hparam]]] = {}
    """Hyperparameters that have other defaults or distributions on some data, by the name or the kind of the data."""

    photograph_batch_size: ClassVar[int | None] = None
    """Photographs per domain and step, which no search changes; None for the batch size of other algorithms."""

    draws_own_rates: ClassVar[bool] = False
    """Whether DomainBed's searches draw its learning rates and weight decay under names of their own."""

    min_domains: ClassVar[int] = 1
    """The least number of source domains."""

    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    """The kinds of inputs that it takes."""

    tasks: ClassVar[tuple[Task, ...]] = TASKS
    """The tasks that it is defined for."""

    limits: ClassVar[str] = ""
    """Why it takes no other kinds or tasks, or no weights of classes, as in "it mixes feature maps"."""

    weighs_classes: ClassVar[bool] = True
    """Whether all of its loss can weigh classes."""

    min_images: ClassVar[int] = 1
    """The least number of images in a domain's batch."""

    keeps_graph: ClassVar[bool] = True
    """Whether `backward` supports ``create_graph=True``."""

    differentiates: ClassVar[bool] = False
    """Whether its loss contains gradients, which ``torch.compile`` does not differentiate."""

    accumulates: ClassVar[bool] = True
    """Whether gradients can be accumulated over parts of a batch: its loss is the mean of the parts' losses, apart from
    random draws."""

    pools_domains: ClassVar[bool] = True
    """Whether its batch norms may see the images of all domains together."""

    transductive: ClassVar[bool] = False
    """Whether predictions depend on the other images of a test batch."""

    single_device: ClassVar[str | None] = None
    """Why its batches cannot be split over several devices; None if it combines images only by their features."""

    mixes_images: ClassVar[bool] = False
    """Whether it mixes images within a batch if there is only one domain; several devices each hold a part of it."""

    reads_pictures: ClassVar[bool] = False
    """Whether it mixes or reads pictures or inner stages, for which the outputs of a frozen trunk cannot stand."""

    probed: ClassVar[bool] = False
    """Whether its classifier starts from a linear probe of the features that the network starts with."""

    stepped: ClassVar[bool] = True
    """Whether an optimizer trains it in steps; if not, it is scored as it starts, after a probe if it has one."""

    takes_class_vectors: ClassVar[bool] = False
    """Whether given vectors of the classes can stand in the place of a classifier that trains."""

    needs_class_vectors: ClassVar[bool] = False
    """Whether it is for such vectors alone."""

    reads_heads: ClassVar[bool] = False
    """Whether it reads the weights of its heads and not only their outputs, so that they cannot be sharded."""

    def __init__(self, network: Network, num_domains: int) -> None:
        super().__init__()
        self.network = self.extend(network)
        self.num_domains = num_domains
        self.optimizers: dict[str, Optimizer] = {}
        self._carried: dict[str, list[Tensor]] | None = None  # None: `carry` has no effect

    @staticmethod
    def extend(network: Network) -> Network:
        """Return the network to train and save: the given one, unless the algorithm adds parts to it."""
        return network

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build the optimizers that `update` steps; by default one over all parameters that train."""
        self.optimizers = {"all": factory(p for p in self.parameters() if p.requires_grad)}

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of normalised images (n, channels, height, width)."""
        logits: Tensor = self.network(images)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Call `predict`, so that an algorithm works like any other model."""
        return self.predict(images)

    def objective(self, batches: Sequence[Batch]) -> Tensor:
        """Return the scalar loss of one batch per source domain."""
        raise NotImplementedError(f"{type(self).__name__} must define objective, backward or update")

    def backward(self, batches: Sequence[Batch], create_graph: bool = False) -> Tensor:
        """Leave gradients in the parameters and return the detached loss."""
        loss = self.objective(batches)
        loss.backward(create_graph=create_graph)  # type: ignore[no-untyped-call]
        return loss.detach()

    def before_step(self, batches: Sequence[Batch], step: int) -> None:
        """Prepare `objective` once per step, before its first pass; does nothing by default.

        As in `objective`, draws from torch's generators depend only on (seed, step).

        Args:
            batches: one batch per source domain; whole batches, even if the step accumulates gradients over parts.
            step: number of the step, from 1.
        """

    def carry(self, buffer: str, value: Tensor) -> None:
        """Keep a value computed in `objective`, such as a moving average, for later steps.

        The value of the step's first pass goes into the buffer after the step. All passes of a step thus see the same
        objective, and the buffer is updated once however many there are. If the step accumulates over parts, the buffer
        gets the mean of their values.

        Args:
            buffer: name of the buffer.
            value: its next value, in the buffer's shape.
        """
        if self._carried is not None:
            self._carried.setdefault(buffer, []).append(value.detach())

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Take one whole step and return the detached loss.

        Args:
            batches: one batch per source domain.
            step: number of the step, from 1.
            make_closure: builds closures for an optimizer's ``step``.
        """
        self.before_step(batches, step)
        evaluate = make_closure(batches)
        carried: dict[str, list[Tensor]] = {}
        self._carried = carried

        def closure() -> Tensor:
            loss = evaluate()
            self._carried = None
            return loss

        loss = self._step("all", closure)
        for name, values in carried.items():
            self.get_buffer(name).copy_(torch.stack(values).mean(0))
        return loss

    def _step(self, name: str, closure: Closure) -> Tensor:
        """Step one of the optimizers and return the detached loss."""
        # torch's types expect a closure to return a float; returning a tensor avoids waiting for the device
        loss: Tensor = self.optimizers[name].step(closure)  # type: ignore[arg-type, assignment]
        return loss

    def domain_losses(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the loss of every source domain, without penalties."""
        return [self.network.loss(self.predict(inputs), targets) for inputs, targets in batches]

    def domain_loss(self, batches: Sequence[Batch], domain: int) -> Tensor:
        """Return one of the `domain_losses`, without a forward pass of the others unless a subclass redefines these."""
        if type(self).domain_losses is not Algorithm.domain_losses:
            return self.domain_losses(batches)[domain]
        return Algorithm.domain_losses(self, [batches[domain]])[0]


ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm", subclasses_of=Algorithm)
"""All algorithms by name: `ALGORITHMS.register(name, cls)` adds one."""
