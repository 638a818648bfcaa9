"""The contract of a domain-generalization algorithm: what is minimised.

An algorithm has three levels, each defaulting to the one before. Nearly all define `Algorithm.objective`; those
that compose gradients define `Algorithm.backward`; those that alternate several optimizers define
`Algorithm.update`. None of them knows which optimizer steps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from shiftproof.base.batch import Batch
from shiftproof.base.hparams import Hparam
from shiftproof.base.registry import Registry
from shiftproof.models import Network

Closure = Callable[[], Tensor]


class MakeClosure(Protocol):
    """Makes the closures of a step."""

    def __call__(self, batches: Sequence[Batch], /, *, annealed: bool = True) -> Closure:
        """Return the closure that an optimizer's ``step`` takes: it evaluates the gradients of some batches.

        Args:
            batches: one batch per domain, of all or of some.
            annealed: whether the annealer edits the gradients and the closure counts as a pass of the run; not so for
                what is trained beside the network.
        """


class SingleDomainWarning(UserWarning):
    """An algorithm that compares source domains has one only, and is ERM."""


class OptimizerFactory(Protocol):
    """Builds the run's optimizer over some parameters."""

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
            name: with the run's seed, the key of its random numbers; no two optimizers of a run share one.
            lr_ratio: its learning rate over the run's.
            weight_decay: None for the run's.
            beta1: the decay of the first moment, for optimizers with Adam's ``betas``, None for their own; others pass
                over it.
            beta2: the same of the second moment.
        """


class Algorithm(nn.Module):
    """A way of training: subclass it and define `objective`.

    Everything a run must remember belongs in parameters, buffers or optimizers made by the factory; a
    checkpoint holds exactly these.

    Args:
        network: the network to train.
        num_domains: number of source domains; every call gets one batch of each, in their order.
    """

    hparams: ClassVar[Mapping[str, Hparam]] = {}
    """Hyperparameters by name; a subclass takes them as keyword arguments."""

    short_hparams: ClassVar[Mapping[str, Hparam]] = {}
    """What a search for short runs has in the place of those: numbers of steps in proportion."""

    photograph_batch_size: ClassVar[int | None] = None
    """Photographs per domain and step, which no search changes; None for as many as other algorithms get."""

    min_domains: ClassVar[int] = 1
    """Source domains that it needs."""

    min_images: ClassVar[int] = 1
    """Images that it needs in the batch of a domain."""

    keeps_graph: ClassVar[bool] = True
    """Whether `backward` can keep the graph of the gradients that it leaves."""

    accumulates: ClassVar[bool] = True
    """Whether the loss of a batch is, but for what is drawn, the mean of its parts': gradients can be accumulated."""

    pools_domains: ClassVar[bool] = True
    """Whether its batch norms may see the images of all domains together."""

    transductive: ClassVar[bool] = False
    """Whether predictions depend on the other images of a test batch."""

    single_device: ClassVar[str | None] = None
    """Why its batches cannot be split over several devices; None where all it knows of images are their features."""

    mixes_images: ClassVar[bool] = False
    """Whether it mixes images of other places in a batch where there is one domain, which devices have parts of."""

    reads_heads: ClassVar[bool] = False
    """Whether it reads weights of its heads, not their outputs alone, so that they cannot be sharded."""

    def __init__(self, network: Network, num_domains: int) -> None:
        super().__init__()
        self.network = self.extend(network)
        self.num_domains = num_domains
        self.optimizers: dict[str, Optimizer] = {}
        self._carried: dict[str, list[Tensor]] | None = None  # None: `carry` has no effect

    @staticmethod
    def extend(network: Network) -> Network:
        """Return the network as it is trained and saved: the given one, unless the algorithm gives it more parts."""
        return network

    def build_optimizers(self, factory: OptimizerFactory) -> None:
        """Build the optimizers of `update`; by default one over all parameters that train."""
        self.optimizers = {"all": factory(p for p in self.parameters() if p.requires_grad)}

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (n, classes) of normalised images (n, channels, height, width)."""
        logits: Tensor = self.network(images)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return what `predict` does, so that an algorithm is a model as any other."""
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
        """Change what `objective` reads once per step, before its first pass; nothing by default.

        Draws from torch's generators are functions of (seed, step) here, as they are in `objective`.

        Args:
            batches: one batch per source domain, the whole ones where a step accumulates the gradients of parts.
            step: number of the step, from 1.
        """

    def carry(self, buffer: str, value: Tensor) -> None:
        """Keep a value that `objective` computed for the steps to come, such as a moving average.

        The first pass of a step sets the buffer, once the step is taken: whatever the number of passes, they see one
        objective, and the buffer moves on once. Where a step accumulates over parts it gets the mean of theirs.

        Args:
            buffer: name of the buffer.
            value: its next value, of its shape.
        """
        if self._carried is not None:
            self._carried.setdefault(buffer, []).append(value.detach())

    def update(self, batches: Sequence[Batch], step: int, make_closure: MakeClosure) -> Tensor:
        """Take the whole step number ``step`` (from 1) and return the detached loss.

        Args:
            batches: one batch per source domain.
            step: number of the step.
            make_closure: makes the closure that an optimizer's ``step`` takes.
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
        # torch types a closure as returning a float; a tensor spares the synchronisation
        loss: Tensor = self.optimizers[name].step(closure)  # type: ignore[arg-type, assignment]
        return loss

    def domain_losses(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the cross-entropy of every source domain, without penalties."""
        return [F.cross_entropy(self.predict(images), labels) for images, labels in batches]

    def domain_loss(self, batches: Sequence[Batch], domain: int) -> Tensor:
        """Return one of the `domain_losses`, without a forward pass of the others where these are not redefined."""
        if type(self).domain_losses is not Algorithm.domain_losses:
            return self.domain_losses(batches)[domain]
        return Algorithm.domain_losses(self, [batches[domain]])[0]


ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm")
