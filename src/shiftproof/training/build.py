"""Builds the parts that take a run's steps. Only the spec determines them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from shiftproof.algorithms import ALGORITHMS, Algorithm
from shiftproof.annealing import ANNEALERS
from shiftproof.base.field_error import FieldError
from shiftproof.base.randomness import torch_seed
from shiftproof.data import DomainDataset
from shiftproof.models import Cut, Network, build_network, cut, freeze_all_but, weighted_cross_entropy
from shiftproof.optim import OPTIMIZERS
from shiftproof.protocol import PROTOCOLS
from shiftproof.training.averaging import check_trained_alone
from shiftproof.training.combinations import check_start
from shiftproof.training.layer_rates import layer_ratios
from shiftproof.training.optimizer_factory import RunOptimizers
from shiftproof.training.prepared import PreparedDataset, balanced_weights, prepared
from shiftproof.training.ranks import ALONE, Ranks, split_over_ranks, whole_featurizer
from shiftproof.training.schedules import ScheduledRates, rate_factor
from shiftproof.training.spec import RunSpec
from shiftproof.training.start_penalty import StartPenalty
from shiftproof.training.step import StepBuilder


def build_steps(
    spec: RunSpec, dataset: DomainDataset, device: torch.device, weights: Path | None, ranks: Ranks = ALONE
) -> StepBuilder:
    """Build the network, algorithm, optimizers and annealer that take a run's steps.

    Args:
        spec: the run's spec, which alone determines the result.
        dataset: the data set that the spec names.
        device: the device to train on.
        weights: file of the weights to start from.
        ranks: the processes that train the run.

    Raises:
        ValueError: a part of the spec is not valid, it combines other runs, the weights do not fit, or the network
            cannot be split over ranks.
    """
    check_trained_alone(spec)
    network = _network(spec, prepared(spec, dataset), weights)
    if spec.cache != "none" and spec.weights is None:
        raise FieldError("cache", "the outputs of a trunk that starts at random are of one run, and are not kept")
    parts = kept_cut(spec, network, device)
    algorithm = _algorithm(spec, parts.rest if parts else network, len(dataset.domains), device, ranks)
    featurizer = parts.network.featurizer if parts else whole_featurizer(algorithm.network)  # with all its blocks
    check_start(spec, featurizer)
    ratios = layer_ratios(featurizer, spec.layer_decay) if spec.layer_decay != 1 else {}
    names = {p: name for name, p in algorithm.named_parameters()}
    algorithm.build_optimizers(RunOptimizers(spec.optimizer, spec.seed, spec.axis("optimizer"), ratios, names))
    return StepBuilder(
        algorithm,
        ANNEALERS[spec.annealer](seed=spec.seed, **spec.axis("annealer")),
        spec.seed,
        create_graph=algorithm.stepped and OPTIMIZERS[spec.optimizer].needs_graph,
        accumulate=spec.accumulate,
        clip_norm=spec.clip_norm,
        precision=spec.precision,
        cut=parts,
        rates=_scheduled_rates(spec, algorithm),
        penalty=StartPenalty(spec.l2_sp, algorithm.network.featurizer.parameters()) if spec.l2_sp else None,
    )


def kept_cut(spec: RunSpec, network: Network, device: torch.device) -> Cut | None:
    """Return a network of which a part is frozen, cut behind its trunk, if a run keeps the trunk's outputs.

    Args:
        spec: the run's spec.
        network: its network.
        device: the device that the trunk is moved to.

    Raises:
        ValueError: it cannot be cut.
    """
    if spec.cache == "none":
        return None
    parts = cut(network)
    parts.trunk.to(device).to(memory_format=torch.channels_last)
    return parts


def _scheduled_rates(spec: RunSpec, algorithm: Algorithm) -> ScheduledRates | None:
    if spec.schedule == "constant" and not spec.warm_up:
        return None
    factor = partial(rate_factor, spec.schedule, steps=spec.steps, warm_up=spec.warm_up)
    return ScheduledRates(algorithm.optimizers, factor)


def build_algorithm(
    spec: RunSpec, dataset: DomainDataset, device: torch.device, weights: Path | None, ranks: Ranks = ALONE
) -> Algorithm:
    """Build a run's network, whole, and algorithm in their initial state, without optimizers.

    It works for runs whose optimizer has been removed. The arguments and errors are those of `build_steps`.
    """
    return _algorithm(spec, _network(spec, prepared(spec, dataset), weights), len(dataset.domains), device, ranks)


def _network(spec: RunSpec, dataset: DomainDataset, weights: Path | None) -> Network:
    protocol = PROTOCOLS[spec.protocol]
    hparams = spec.axis("model")
    network = build_network(
        spec.model,
        dataset.input_shape,
        len(dataset.classes),
        dropout=hparams["dropout"],
        weights=weights,
        seed=torch_seed(spec.seed, "start"),
        freeze_batch_norm=protocol.freeze_batch_norm,
        zero_classifier=protocol.zero_classifier,
        normalisation=spec.normalisation,
        hparams=hparams,
        task=dataset.task,
        quantity=dataset.quantity if isinstance(dataset, PreparedDataset) else None,
        class_vectors=None if dataset.class_vectors is None else torch.from_numpy(dataset.class_vectors.vectors),
    )
    freeze_all_but(network, spec.trained)
    if spec.class_weights == "balanced":
        network.loss = weighted_cross_entropy(balanced_weights(spec, dataset))
    return network


def _algorithm(spec: RunSpec, network: Network, domains: int, device: torch.device, ranks: Ranks) -> Algorithm:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(spec.seed, "algorithm"))
        algorithm = ALGORITHMS[spec.algorithm](network, domains - len(spec.targets), **spec.axis("algorithm"))
        # FSDP2 cannot shard weights in channels-last format
        algorithm.to(device).to(memory_format=torch.contiguous_format if ranks.sharded else torch.channels_last)
        if spec.compile:
            algorithm.network.featurizer.compile()
        split_over_ranks(algorithm, ranks)
    return algorithm
