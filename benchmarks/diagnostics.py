"""What gradient moments cost beside a backward pass, and a recorder beside a step.

Printed by `python -m benchmarks.diagnostics`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.command import add_output, add_study, show, study_of, with_target
from shiftproof.base.batch import Batch
from shiftproof.diagnostics import Recorder, gradient_moments
from shiftproof.studies import Study, open_data, plan_run
from shiftproof.training import Inputs, build_steps, reproducible

_NOTES = (
    "Medians over rounds in which all take turns, on the same samples in chunks of the same size; the first round is",
    "not counted. The ratio is to one forward and backward pass, which gives only the mean gradient. The loop",
    "evaluates sample by sample, and adds up gradients and their squares. Normalisation is in evaluation mode. The",
    "recorded step measures OSGR, balance and agreement each time, on fresh batches of the sources and one of the",
    "unseen domains; its ratio is to the training step.",
)


def bench_diagnostics(study: Study, *, samples: int = 256, chunk_size: int = 64, rounds: int = 10) -> dict[str, Any]:
    """Time gradient moments and recorded steps with the initial network and the images of a study's first run.

    It computes on one thread, as in runs.

    Args:
        study: a study on any data; without targets, all domains but three are left out.
        samples: most samples per source domain.
        chunk_size: number of samples evaluated at once.
        rounds: measurements of each.

    Returns:
        JSON values: ``setting``, ``notes`` and ``rows``, each with ``name``, milliseconds per sample
        (``milliseconds``, ``least``, ``most``) and ``ratio``.

    Raises:
        ValueError: the study is not valid, a number is below 1, or samples below 2.
    """
    for name, number, least in (("samples", samples, 2), ("chunk_size", chunk_size, 1), ("rounds", rounds, 1)):
        if number < least:
            raise ValueError(f"{name} must be a whole number, at least {least}, not {number}")
    data, device = open_data(study, study.datasets[0]), study.device_here()
    study = with_target(study, data)
    spec = plan_run(study, 0, 0)
    with reproducible():
        network = build_steps(spec, data, device, study.weights_file).algorithm.network.eval()
        inputs = Inputs(data, spec, network.normalisation, device)
        domains = [inputs.sample(domain, "in", samples) for domain in inputs.sources]
        chunks = [
            chunk
            for images, labels in domains
            for chunk in zip(torch.split(images, chunk_size), torch.split(labels, chunk_size), strict=True)
        ]
        plain, recorded = (build_steps(spec, data, device, study.weights_file) for _ in range(2))
        Recorder(
            recorded.algorithm,
            recorded.algorithm.optimizers["all"],
            F.cross_entropy,
            inputs.fresh_batches,
            unseen=inputs.unseen_batch,
            every=1,
        )
        total = sum(len(labels) for _, labels in domains)
        batches = inputs.batches(1)
        trained = sum(len(labels) for _, labels in batches)
        # by name: the work to time, its number of samples, and the baseline of its ratio
        works: dict[str, tuple[Callable[[], object], int, str]] = {
            "backward pass": (lambda: _backward(network, chunks), total, "backward pass"),
            "gradient moments": (
                lambda: gradient_moments(
                    network, [[domain] for domain in domains], F.cross_entropy, chunk_size=chunk_size
                ),
                total,
                "backward pass",
            ),
            "loop over samples": (lambda: _loop(network, domains), total, "backward pass"),
            "training step": (lambda: plain.take(batches, 1), trained, "training step"),
            "recorded step": (lambda: recorded.take(batches, 1), trained, "training step"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds + 1):
            for name, (work, _, _) in works.items():
                begin = time.perf_counter()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[name].append(time.perf_counter() - begin)
    typical = {name: median(taken[1:]) for name, taken in seconds.items()}
    return {
        "setting": {
            "dataset": spec.dataset,
            "source domains": len(domains),
            "model": spec.model,
            "weights": sum(p.numel() for p in network.parameters()),
            "image size": data.input_shape[-1],
            "samples": total,
            "chunk": chunk_size,
            "rounds": rounds,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": 1,
            "torch": torch.__version__,
        },
        "notes": list(_NOTES),
        "rows": [
            {
                "name": name,
                "milliseconds": 1e3 * typical[name] / count,
                "least": 1e3 * min(seconds[name][1:]) / count,
                "most": 1e3 * max(seconds[name][1:]) / count,
                "ratio": typical[name] / typical[baseline],
            }
            for name, (_, count, baseline) in works.items()
        ],
    }


def diagnostics_table(result: dict[str, Any]) -> str:
    """Return the result of `bench_diagnostics` as text."""
    lines = [", ".join(f"{name} {value}" for name, value in result["setting"].items()), ""]
    lines.append(f"{'':20}{'ms per sample':>28}{'ratio':>8}")
    for row in result["rows"]:
        spread = f"{row['milliseconds']:.3f} ({row['least']:.3f} to {row['most']:.3f})"
        lines.append(f"{row['name']:20}{spread:>28}{row['ratio']:8.2f}")
    return "\n".join([*lines, "", *result["notes"]])


def _backward(network: nn.Module, chunks: Sequence[Batch]) -> None:
    for images, labels in chunks:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]


def _loop(network: nn.Module, domains: Sequence[Batch]) -> None:
    parameters = [p for p in network.parameters() if p.requires_grad]
    sums, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for images, labels in domains:
        for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
            gradients = torch.autograd.grad(F.cross_entropy(network(image), label), parameters)
            for total, square, gradient in zip(sums, squares, gradients, strict=True):
                total.add_(gradient)
                square.addcmul_(gradient, gradient)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the diagnostics and show what they took."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diagnostics", description="Time what diagnostics cost beside a backward pass."
    )
    add_study(parser)
    parser.add_argument("--samples", type=int, default=256, metavar="N", help="per domain (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="turns of each (default: %(default)s)")
    add_output(parser)
    options = parser.parse_args(arguments)
    result = bench_diagnostics(study_of(options), samples=options.samples, rounds=options.rounds)
    show(result, diagnostics_table(result), options.output)


if __name__ == "__main__":
    main()
