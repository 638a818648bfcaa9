"""The linear probe: a classifier that is fitted to convergence to the features of fixed weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from shiftproof.algorithms import Batch
from shiftproof.base.choices import Task
from shiftproof.models import Network
from shiftproof.protocol import best_by_validation, score
from shiftproof.training.inputs import Inputs
from shiftproof.training.spec import RunSpec

PENALTIES = tuple(10 ** (halves / 2) for halves in range(2, -11, -1))
"""The penalties that validation chooses among, the strongest first: 10 to 1e-5 in steps of half a decade."""
PATIENCE = 3
"""Weaker penalties in a row that do not improve validation, after which no more are tried."""
TOLERANCE = 1e-5
"""Largest component of the gradient at which a fit has converged."""
_MOST_ITERATIONS = 10_000


class Probe(NamedTuple):
    """What was chosen of the fits of a linear probe.

    Attributes:
        penalty: the chosen penalty.
        iterations: iterations of L-BFGS, of all fits together.
        converged: whether every fit reached `TOLERANCE`, up to rounding.
    """

    penalty: float
    iterations: int
    converged: bool


def fit_probe(
    spec: RunSpec, network: Network, inputs: Inputs, domains: Sequence[str], penalty: float | None = None
) -> Probe:
    r"""Fit a network's classifier to the features of the sources, and leave the rest as it is.

    With features standardised over the training rows it minimises

    .. math:: \frac1D \sum_{d=1}^D L_d(W, b) + \frac\lambda2 \lVert W \rVert_F^2

    where :math:`L_d` is the mean loss of the training rows of source :math:`d`, or with balanced sampling the mean over
    its classes of their mean losses. It is what steps on batches with as many rows of every source minimise. L-BFGS
    starts from zero at the strongest of `PENALTIES`, and at each weaker one from the solution before. The measure of
    the run on the held-out rows, its mean over the sources, chooses; on a tie the stronger penalty.

    Source: the linear classifiers that Radford et al., "Learning transferable visual models from natural language
    supervision", ICML 2021 (arXiv 2103.00020), fit to features: by L-BFGS, the penalty chosen on held-out rows
    (appendix A.3).

    Args:
        spec: the run's spec.
        network: the network, or what follows its trunk.
        inputs: the run's inputs.
        domains: names of all domains, in order.
        penalty: the penalty, chosen by a first pass, of a second that trains on the held-out rows too; None to choose.

    Raises:
        ValueError: a feature is not finite.
    """
    training = network.training
    network.eval()
    fitted = [_features(network, inputs.training_batches(domain)) for domain in inputs.sources]
    held_out = {
        domains[domain]: _features(network, inputs.evaluation_batches(domain, "out"))
        for domain in inputs.sources
        if penalty is None
    }
    network.train(training)
    path = _Path(_Problem(network, fitted, by_class=spec.sampling == "balanced"))
    if penalty is not None:
        path.problem.put(path.solve(penalty))
        return Probe(penalty, path.iterations, path.converged)
    rows = {name: (path.problem.standardised(features), targets) for name, (features, targets) in held_out.items()}
    solutions: list[NDArray[np.float64]] = []
    records: list[dict[str, Any]] = []
    best = 0
    for number, weaker in enumerate(PENALTIES):
        solutions.append(found := path.solve(weaker))
        scores = {
            name: {"out": {"measures": path.problem.score(found, *part, spec.task, spec.selecting_metric)}}
            for name, part in rows.items()
        }
        records.append({"number": number, "domains": scores})
        best = best_by_validation(records, spec.targets, spec.selecting_metric)["number"]
        if number - best == PATIENCE:
            break
    path.problem.put(solutions[best])
    return Probe(PENALTIES[best], path.iterations, path.converged)


@torch.no_grad()
def _features(network: Network, batches: Iterable[Batch]) -> Batch:
    """Return the features (n, size) and targets of all batches."""
    seen = [(network.featurizer(rows), targets) for rows, targets in batches]
    features, targets = map(torch.cat, zip(*seen, strict=True))
    if not features.isfinite().all():
        raise ValueError("the features that the given weights compute are not finite: there is nothing to fit")
    return features, targets


class _Path:
    """Solves a problem at one penalty after another, each from the solution before, the first from zero."""

    def __init__(self, problem: _Problem) -> None:
        self.problem = problem
        self.iterations, self.converged = 0, True
        self._at: NDArray[np.float64] = np.zeros(problem.size)

    def solve(self, penalty: float) -> NDArray[np.float64]:
        from scipy.optimize import minimize  # here, because importing it would cost every training process a second
        from threadpoolctl import threadpool_limits

        options = {"gtol": TOLERANCE, "ftol": 0.0, "maxiter": _MOST_ITERATIONS, "maxfun": 2 * _MOST_ITERATIONS}
        with threadpool_limits(1):  # for so few numbers, more threads only wait for each other
            fit = minimize(self.problem, self._at, (penalty,), "L-BFGS-B", jac=True, options=options)
        self._at = fit.x
        self.iterations += int(fit.nit)
        self.converged = self.converged and bool(np.abs(fit.jac).max() <= 10 * TOLERANCE)
        return self._at


class _Problem:
    """What a linear probe minimises, in standardised features and double precision.

    A solution is the flat weights and biases of a classifier of standardised features.

    Args:
        network: the network, whose loss and classifier are fitted.
        domains: features and targets of the training rows of every source.
        by_class: whether the classes of a source weigh alike.
    """

    def __init__(self, network: Network, domains: Sequence[Batch], by_class: bool) -> None:
        self._network = network
        features, self._targets = map(torch.cat, zip(*domains, strict=True))
        self._rows = features.double()
        self._mean, self._std = self._rows.mean(0), self._rows.std(0, correction=0)
        self._std[self._std == 0] = 1.0  # of a dead feature, whose weight stays zero
        self._rows.sub_(self._mean).div_(self._std)
        self._lengths = [len(targets) for _, targets in domains]
        self._shares = torch.cat([_shares_by_class(targets) for _, targets in domains]) if by_class else None
        self._weights = network.classifier.weight.shape
        self.size = self._weights.numel() + len(network.classifier.bias)

    def __call__(self, solution: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        """Return the objective and its gradient."""
        at = torch.tensor(solution, device=self._rows.device, requires_grad=True)
        outputs = self._outputs(at, self._rows)
        if self._shares is not None:  # of classes: the loss is the cross-entropy, whose weights of classes cancel
            loss = self._shares @ F.cross_entropy(outputs, self._targets, reduction="none")
        else:
            parts = zip(torch.split(outputs, self._lengths), torch.split(self._targets, self._lengths), strict=True)
            loss = torch.stack([self._network.loss(*part) for part in parts]).sum()
        value = loss / len(self._lengths) + penalty / 2 * at[: self._weights.numel()].square().sum()
        [gradient] = torch.autograd.grad(value, at)
        return float(value.detach()), gradient.cpu().numpy()

    def score(
        self, solution: NDArray[np.float64], rows: Tensor, targets: Tensor, task: Task, metric: str
    ) -> dict[str, float | None]:
        """Return a measure of a solution's outputs for standardised features."""
        outputs = self._outputs(torch.tensor(solution, device=rows.device), rows)
        if task == "regression":
            outputs = outputs.reshape(targets.shape)
        return score(task, outputs.cpu().numpy(), targets.cpu().numpy(), [metric])

    def standardised(self, features: Tensor) -> Tensor:
        """Return features as the problem has those of its training rows."""
        return (features.double() - self._mean) / self._std

    @torch.no_grad()
    def put(self, solution: NDArray[np.float64]) -> None:
        """Put a solution into the network's classifier, which takes features as they are."""
        weights, biases = self._parts(torch.tensor(solution, device=self._rows.device))
        classifier = self._network.classifier
        classifier.weight.copy_(weights / self._std)
        classifier.bias.copy_(biases - weights @ (self._mean / self._std))

    def _outputs(self, at: Tensor, rows: Tensor) -> Tensor:
        weights, biases = self._parts(at)
        outputs: Tensor = functional_call(self._network.classifier, {"weight": weights, "bias": biases}, (rows,))
        return outputs

    def _parts(self, at: Tensor) -> tuple[Tensor, Tensor]:
        split = self._weights.numel()
        return at[:split].view(self._weights), at[split:]


def _shares_by_class(targets: Tensor) -> Tensor:
    """Return the share of every row in the mean over the classes of their means."""
    _, places, counts = torch.unique(targets, return_inverse=True, return_counts=True)
    shares: Tensor = 1 / len(counts) / counts.double()[places]
    return shares
