"""What a candidate of GGA's search costs, beside that of the released search: `python -m benchmarks.annealer`."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.command import add_output, add_study, show, study_of, with_target
from shiftproof.algorithms import Algorithm, Batch
from shiftproof.annealing import GGA
from shiftproof.studies import Study, open_data, plan_run
from shiftproof.training import Inputs, build_steps, reproducible

_NOTES = (
    "Means over searches that take turns, all from the same weights and with equally many candidates (the two of",
    "shiftproof with the same ones); least and most in brackets. The ratio is to the released search.",
    "A pass is one domain's batch through the network. Copies: the most held at once besides the weights, as a",
    "multiple of all weights. The released search was reimplemented from its description, with its number of passes",
    "and copies.",
)


@dataclass
class _Counts:
    """Counts of a search: forward and backward passes of one domain's batch, and copied weights."""

    forward: int = 0
    backward: int = 0
    copied: int = 0
    seconds: list[float] = field(default_factory=list)


class _Search(Protocol):
    def __call__(self, algorithm: Algorithm, batches: Sequence[Batch], step: int, counts: _Counts) -> None: ...


class _EveryDomain(GGA):
    """GGA without early rejection."""

    _rejects_early = False


def bench_annealer(study: Study, *, candidates: int = 100, rounds: int = 3) -> dict[str, Any]:
    """Time searches with the initial network and the images of a study's first run, on one thread, as in runs.

    Args:
        study: a study on any data; without targets, all domains but three are left out.
        candidates: number of candidates per search.
        rounds: searches of each kind, each at another step.

    Returns:
        JSON values: ``setting``, ``notes`` and ``rows``, each with ``name``, milliseconds per candidate
        (``milliseconds``, ``least``, ``most``), ``ratio``, ``forward`` and ``backward`` passes of one domain per
        candidate, and ``copies``, in multiples of all weights.

    Raises:
        ValueError: the study is not valid, a number is below 1, or there are fewer than two source domains.
    """
    for name, number in (("candidates", candidates), ("rounds", rounds)):
        if number < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {number}")
    data, device = open_data(study, study.datasets[0]), study.device_here()
    study = with_target(study, data)
    spec = plan_run(study, 0, 0)
    searches: dict[str, _Search] = {
        "released search": _Released(candidates),
        "shiftproof, every domain": _Ours(_EveryDomain, candidates),
        "shiftproof": _Ours(GGA, candidates),
    }
    with reproducible():
        algorithm = build_steps(spec, data, device, study.weights_file).algorithm.train()
        inputs = Inputs(data, spec, algorithm.network.normalisation, device)
        start = copy.deepcopy(algorithm.state_dict())
        counts = {name: _Counts() for name in searches}
        for step in range(rounds + 1):
            batches = inputs.batches(step + 1)
            for name, search in searches.items():
                algorithm.load_state_dict(start)
                counted = counts[name] if step else _Counts()  # the first round warms up
                begin = time.perf_counter()
                search(algorithm, batches, step, counted)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                counted.seconds.append(time.perf_counter() - begin)
    weights = sum(p.numel() for p in algorithm.parameters())
    baseline = fmean(counts["released search"].seconds)
    return {
        "setting": {
            "dataset": spec.dataset,
            "source domains": len(inputs.sources),
            "model": spec.model,
            "weights": weights,
            "image size": data.input_shape[-1],
            "images per domain and step": spec.axis("data")["batch_size"],
            "candidates": candidates,
            "rounds": rounds,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": 1,
            "torch": torch.__version__,
        },
        "notes": list(_NOTES),
        "rows": [
            {
                "name": name,
                "milliseconds": 1e3 * fmean(counted.seconds) / candidates,
                "least": 1e3 * min(counted.seconds) / candidates,
                "most": 1e3 * max(counted.seconds) / candidates,
                "ratio": fmean(counted.seconds) / baseline,
                "forward": counted.forward / rounds / candidates,
                "backward": counted.backward / rounds / candidates,
                "copies": counted.copied / weights,
            }
            for name, counted in counts.items()
        ],
    }


def annealer_table(result: dict[str, Any]) -> str:
    """Return the result of `bench_annealer` as text."""
    lines = [", ".join(f"{name} {value}" for name, value in result["setting"].items()), ""]
    lines.append(f"{'':28}{'ms per candidate':>26}{'ratio':>8}{'forward':>10}{'backward':>10}{'copies':>8}")
    for row in result["rows"]:
        spread = f"{row['milliseconds']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
        passes = f"{row['forward']:10.2f}{row['backward']:10.2f}"
        lines.append(f"{row['name']:28}{spread:>26}{row['ratio']:8.2f}{passes}{row['copies']:8.2f}")
    return "\n".join([*lines, "", *result["notes"]])


class _Ours:
    def __init__(self, kind: type[GGA], candidates: int) -> None:
        self._kind, self._candidates = kind, candidates

    def __call__(self, algorithm: Algorithm, batches: Sequence[Batch], step: int, counts: _Counts) -> None:
        annealer = self._kind(candidates=self._candidates, start=0, end=step + 1)

        def loss_of(domain: int) -> Callable[[], Tensor]:
            return lambda: algorithm.domain_loss(batches, domain)

        searched = list(algorithm.network.featurizer.parameters())
        annealer.before_step(algorithm.parameters(), step, [loss_of(i) for i in range(len(batches))], searched)
        counts.forward += int(annealer.totals["evaluations"])
        counts.backward += int(annealer.totals["evaluations"])
        counts.copied = sum(p.numel() for p in searched)


class _Released:
    """The released search, which spends a separate pass on the union's loss and copies all weights on acceptance."""

    def __init__(self, candidates: int, radius: float = 1e-5, tolerance: float = 0.1) -> None:
        self._candidates, self._radius, self._tolerance = candidates, radius, tolerance

    def __call__(self, algorithm: Algorithm, batches: Sequence[Batch], step: int, counts: _Counts) -> None:
        network = algorithm.network
        start = copy.deepcopy(network.state_dict())
        best, copied = start, 1
        similarity, loss = self._measure(algorithm, batches, counts)
        for _ in range(self._candidates):
            with torch.no_grad():
                for p in network.featurizer.parameters():
                    p.add_((2 * torch.rand_like(p) - 1) * self._radius)
            found, rise = self._measure(algorithm, batches, counts)
            if found > similarity and rise < loss + self._tolerance:
                similarity, loss, best, copied = found, rise, copy.deepcopy(network.state_dict()), 2
                network.load_state_dict(start)
        network.load_state_dict(best)
        counts.copied = max(counts.copied, copied * sum(p.numel() for p in network.parameters()))

    def _measure(self, algorithm: Algorithm, batches: Sequence[Batch], counts: _Counts) -> tuple[float, float]:
        with torch.no_grad():
            loss = float(algorithm.objective(batches))
        counts.forward += len(batches)  # one pass of the union
        gradients = []
        for images, labels in batches:
            algorithm.zero_grad()
            F.cross_entropy(algorithm.predict(images), labels).backward()  # type: ignore[no-untyped-call]
            gradients.append(torch.cat([p.grad.flatten() for p in algorithm.parameters() if p.grad is not None]))
            counts.forward += 1
            counts.backward += 1
        cosines = [float(F.cosine_similarity(a, b, dim=0)) for a, b in combinations(gradients, 2)]
        return min(cosines), loss


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the searches and show what they took."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.annealer", description="Time GGA's search beside the released one."
    )
    add_study(parser)
    parser.add_argument("--candidates", type=int, default=100, metavar="N", help="of a search (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="searches of each (default: %(default)s)")
    add_output(parser)
    options = parser.parse_args(arguments)
    result = bench_annealer(study_of(options), candidates=options.candidates, rounds=options.rounds)
    show(result, annealer_table(result), options.output)


if __name__ == "__main__":
    main()
