"""The training step, put together from an algorithm, an optimizer and an annealer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from shiftproof.algorithms import ERM, Algorithm, Batch, Closure
from shiftproof.annealing import Annealer, DomainLosses
from shiftproof.base.choices import Precision
from shiftproof.base.randomness import seed_generators, torch_seed
from shiftproof.models import Cut
from shiftproof.training.schedules import ScheduledRates
from shiftproof.training.start_penalty import StartPenalty


@dataclass
class StepBuilder:
    """Takes the steps of a run with any algorithm, optimizer and annealer.

    A closure seeds torch's generators from (seed, step), clears the gradients, lets the algorithm compute them and the
    annealer edit them, adds those of a penalty, clips them and returns the detached loss, which is without the penalty.
    Two calls at the same parameters give the same loss and gradients bit for bit, so that a multi-pass optimizer sees
    one objective.

    Attributes:
        algorithm: computes the gradients.
        annealer: acts around a step.
        seed: the run's seed.
        create_graph: whether the optimizer needs the graph of the backward pass.
        accumulate: number of parts that each domain's batch is split into; gradients and losses are averaged over them.
        clip_norm: norm that the gradient is clipped to; None for no clipping.
        precision: "float32", or "bf16" for autocast.
        cut: the network, cut behind its trunk, if the algorithm has only the rest; None if it has the whole.
        rates: sets the learning rates before every step; None if they stay as they are.
        penalty: adds its gradients in closures of the network; None for no penalty.
        evaluated: number of domain batches that closures have evaluated so far, without those for parts that are
            trained beside the network.
    """

    algorithm: Algorithm
    annealer: Annealer
    seed: int
    create_graph: bool = False
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "float32"
    cut: Cut | None = None
    rates: ScheduledRates | None = None
    penalty: StartPenalty | None = None
    evaluated: int = field(default=0)

    @property
    def passes(self) -> float:
        """Passes over a batch of every source domain so far, an int if whole; the annealer counts its own passes."""
        whole, rest = divmod(self.evaluated, self.algorithm.num_domains)
        return self.evaluated / self.algorithm.num_domains if rest else whole

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far as plain Python values; the algorithm and its optimizers hold all other state."""
        return {"evaluated": self.evaluated, "annealer": self.annealer.totals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.evaluated, self.annealer.totals = state["evaluated"], state["annealer"]

    def take(self, batches: Sequence[Batch], step: int) -> Tensor:
        """Take step number ``step`` (from 1) on one batch per source domain and return the detached loss."""
        parameters = [p for p in self.algorithm.parameters() if p.requires_grad]
        if self.rates is not None:
            self.rates.set(step)

        def make_closure(part: Sequence[Batch], *, annealed: bool = True) -> Closure:
            # an algorithm may ask for several closures, on batches of its own, and may have built another optimizer
            if self.rates is not None:
                self.rates.set(step)
            return self._closure(part, batches if annealed else None, step, parameters)

        searched = [p for p in self.algorithm.network.featurizer.parameters() if p.requires_grad]
        seed_generators(torch_seed(self.seed, "annealer", step), batches[0][0].device)  # there may be no parameters
        # bfloat16 would round away the changes that a search makes
        self.annealer.before_step(parameters, step, self._domain_losses(batches, autocast=False), searched)
        return self.algorithm.update(batches, step, make_closure)

    def _domain_losses(
        self, batches: Sequence[Batch], seen: list[Tensor] | None = None, *, autocast: bool = True
    ) -> DomainLosses:
        """Return functions that evaluate the loss of each domain and append the detached values to ``seen``."""

        def domain_loss(domain: int) -> Tensor:
            with self._autocast(batches) if autocast else nullcontext():
                loss = self.algorithm.domain_loss(batches, domain)
            if seen is not None:
                seen.append(loss.detach())
            return loss

        return [partial(domain_loss, domain) for domain in range(len(batches))]

    def _annealer_passes_suffice(self, batches: Sequence[Batch]) -> bool:
        """Return whether the annealer's own passes give the gradient of the objective, so that no other is needed.

        Batch norms in training mode would see single domains instead of their union, and subclasses of ERM may
        minimise anything.
        """
        return (
            self.annealer.leaves_mean
            and type(self.algorithm) is ERM
            and not self.create_graph
            and self.accumulate == 1
            and len({len(labels) for _, labels in batches}) == 1
            and not any(isinstance(m, _BatchNorm) and m.training for m in self.algorithm.modules())
        )

    def _autocast(self, batches: Sequence[Batch]) -> torch.autocast:
        return torch.autocast(batches[0][0].device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _closure(
        self, batches: Sequence[Batch], domains: Sequence[Batch] | None, step: int, parameters: Sequence[Tensor]
    ) -> Closure:
        """Return the closure on ``batches``; the annealer edits its gradients by ``domains``, unless they are None."""
        parts = split_batches(batches, self.accumulate)

        def closure() -> Tensor:
            if domains is not None:
                self.evaluated += len(batches)
            seed_generators(torch_seed(self.seed, "step", step), parameters[0].device)
            for p in parameters:
                p.grad = None
            losses: list[Tensor] = []
            if domains is not None and batches is domains and self._annealer_passes_suffice(batches):
                self.annealer.edit_gradients(parameters, step, self._domain_losses(domains, losses))
            else:
                with self._autocast(batches):
                    losses = [self.algorithm.backward(part, self.create_graph) for part in parts]
                if len(parts) > 1:
                    for p in parameters:
                        if p.grad is not None:
                            p.grad /= len(parts)
                if domains is not None:
                    self.annealer.edit_gradients(parameters, step, self._domain_losses(domains))
            if self.penalty is not None and domains is not None:
                self.penalty.add_gradients(self.create_graph)
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            return torch.stack(losses).mean()

        return closure


def split_batches(batches: Sequence[Batch], parts: int) -> list[list[Batch]]:
    """Split every domain's batch into equal parts, each with all domains.

    Raises:
        ValueError: a batch cannot be divided into that many equal parts.
    """
    for images, _ in batches:
        if len(images) % parts:
            raise ValueError(f"a batch of {len(images)} images cannot be split into {parts} equal parts")
    split = [zip(images.chunk(parts), labels.chunk(parts), strict=True) for images, labels in batches]
    return [list(part) for part in zip(*split, strict=True)]
