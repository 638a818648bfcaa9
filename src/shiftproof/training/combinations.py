"""Checks that data, algorithm, optimizer and annealer can work together."""

from __future__ import annotations

from torch import nn

from shiftproof.algorithms import ALGORITHMS, Algorithm
from shiftproof.annealing import ANNEALERS
from shiftproof.base.choices import PICTURES, Kind
from shiftproof.base.field_error import FieldError
from shiftproof.models import MODELS
from shiftproof.optim import NO_OPTIMIZER, OPTIMIZERS
from shiftproof.training.averaging import SWADS, check_trained_alone
from shiftproof.training.ranks import ALONE, Ranks
from shiftproof.training.spec import RunSpec


def check_inputs_taken(spec: RunSpec, kind: Kind) -> None:
    """Check before training that an algorithm and a model take a data set's inputs and task.

    Args:
        spec: the run's spec.
        kind: kind of the data set's inputs.

    Raises:
        FieldError: they do not; the message says why.
    """
    algorithm = ALGORITHMS[spec.algorithm]
    if kind not in algorithm.kinds:
        raise FieldError(
            "algorithms",
            f"{spec.algorithm} takes {' and '.join(algorithm.kinds)}, and {spec.dataset} has {kind}: "
            f"{algorithm.limits}",
        )
    if spec.task not in algorithm.tasks:
        raise FieldError(
            "algorithms",
            f"{spec.algorithm} is for {' and '.join(algorithm.tasks)}, and {spec.dataset} for {spec.task}: "
            f"{algorithm.limits}",
        )
    for name in ("sampling", "class_weights"):
        if getattr(spec, name) == "balanced" and spec.task != "classification":
            raise FieldError(name, f"{name} balanced is for classes, and {spec.dataset} for {spec.task}")
    if spec.class_weights == "balanced" and not algorithm.weighs_classes:
        raise FieldError(
            ("class_weights", "algorithms"),
            f"{spec.algorithm} cannot weigh classes: {algorithm.limits}; sampling balanced can be used instead",
        )
    kinds = MODELS[spec.model].kinds if spec.model in MODELS else PICTURES
    if kind not in kinds:
        raise FieldError("model", f"model '{spec.model}' takes {' and '.join(kinds)}, and {spec.dataset} has {kind}")


def check_start(spec: RunSpec, featurizer: nn.Module) -> None:
    """Check before training that the featurizer, as it starts, has what a run asks of it.

    Args:
        spec: the run's spec.
        featurizer: the featurizer, of which what does not train is frozen.

    Raises:
        FieldError: what acts on weights before the classifier finds none that train, or a linear probe or vectors of
            classes would be of random features.
    """
    if ALGORITHMS[spec.algorithm].probed and spec.weights is None and any(True for _ in featurizer.parameters()):
        raise FieldError(
            ("algorithms", "weights", "model"),
            f"{spec.algorithm} fits a linear probe to the features of given weights, and {spec.model} would start at "
            "random: set weights",
        )
    if (
        ALGORITHMS[spec.algorithm].needs_class_vectors
        and spec.weights is None
        and any(True for _ in featurizer.parameters())
    ):
        raise FieldError(
            ("algorithms", "weights", "model"),
            f"{spec.algorithm} compares class vectors with the features of given weights, and {spec.model} would start "
            "at random: set weights",
        )
    if any(p.requires_grad for p in featurizer.parameters()):
        return
    for name, default in (("layer_decay", 1), ("l2_sp", 0)):
        if getattr(spec, name) != default:
            raise FieldError(
                (name, "trained", "model"),
                f"{name} acts on the weights before the classifier, and none of them trains: leave it out",
            )


def check_combination(spec: RunSpec, num_domains: int, ranks: Ranks = ALONE) -> None:
    """Check before training that the parts of a run can work together.

    Args:
        spec: the run's spec.
        num_domains: number of source domains.
        ranks: the processes that train it.

    Raises:
        FieldError: they cannot, or it combines other runs; the message says why.
    """
    check_trained_alone(spec)
    if num_domains < 1:
        raise FieldError("targets", f"leaving out {', '.join(spec.targets)} leaves no source domain to train on")
    algorithm = ALGORITHMS[spec.algorithm]
    if num_domains < algorithm.min_domains:
        raise FieldError(
            ("algorithms", "single_source", "targets"),
            f"{spec.algorithm} needs at least {algorithm.min_domains} source domains, not {num_domains}",
        )
    batch_size = spec.axis("data")["batch_size"]
    if batch_size < algorithm.min_images:
        raise FieldError(
            ("data.batch_size", "algorithms"),
            f"{spec.algorithm} needs batches of at least {algorithm.min_images} images per domain, not {batch_size}",
        )
    _check_class_vectors(spec, algorithm)
    if algorithm.stepped != (spec.optimizer != NO_OPTIMIZER):
        takes = "steps by an optimizer: name one" if algorithm.stepped else f"no optimizer, not {spec.optimizer}"
        raise FieldError("optimizers", f"{spec.algorithm} takes {takes}")
    if not algorithm.stepped:
        if spec.averaging != "none":
            raise FieldError("averaging", f"{spec.algorithm} takes no steps, and there is nothing to average")
        if spec.annealer != "none":
            raise FieldError("annealers", f"{spec.algorithm} takes no steps for {spec.annealer} to act on")
    else:
        _check_steps(spec, algorithm, num_domains, ranks)
    if ranks.size > 1:
        _check_ranks(spec, num_domains, ranks)


def _check_class_vectors(spec: RunSpec, algorithm: type[Algorithm]) -> None:
    if spec.class_vectors is None:
        if algorithm.needs_class_vectors:
            raise FieldError(
                ("algorithms", "class_vectors"),
                f"{spec.algorithm} compares features with given vectors of the classes: name their file by "
                "--class-vectors",
            )
        return
    if not algorithm.takes_class_vectors:
        able = ", ".join(name for name in ALGORITHMS if ALGORITHMS[name].takes_class_vectors)
        raise FieldError(
            ("class_vectors", "algorithms"),
            f"{spec.algorithm} trains a classifier of its own: class vectors are for {able}",
        )
    if algorithm.stepped and spec.trained == "head":
        raise FieldError(
            ("trained", "class_vectors"), "with class vectors there is no head to train: they stay as they are"
        )


def _check_steps(spec: RunSpec, algorithm: type[Algorithm], num_domains: int, ranks: Ranks) -> None:
    if OPTIMIZERS[spec.optimizer].needs_graph and not algorithm.keeps_graph:
        raise FieldError(
            ("optimizers", "algorithms"),
            f"{spec.optimizer} differentiates the gradient, but the gradient of {spec.algorithm} has no graph: use "
            "another optimizer",
        )
    if spec.cache != "none" and ranks.size > 1:
        raise FieldError("cache", "the outputs of a trunk are not shared out among devices: set cache to none")
    if spec.trained == "head" and ANNEALERS[spec.annealer].searches:
        raise FieldError(
            ("trained", "annealers"), f"{spec.annealer} searches the featurizer's weights, which are frozen: train all"
        )
    if spec.accumulate > 1 and not algorithm.accumulates:
        raise FieldError(
            ("accumulate", "algorithms"),
            f"the loss of {spec.algorithm} is not the mean over parts of a batch: set accumulate to 1, not "
            f"{spec.accumulate}",
        )
    if spec.accumulate > 1 and spec.class_weights == "balanced":
        raise FieldError(
            ("accumulate", "class_weights"),
            f"the loss with weights of classes is not the mean over parts of a batch: set accumulate to 1, not "
            f"{spec.accumulate}, or use sampling balanced",
        )
    for axis, name, differentiates in (
        ("algorithms", spec.algorithm, algorithm.differentiates),
        ("optimizers", spec.optimizer, OPTIMIZERS[spec.optimizer].needs_graph),
    ):
        if spec.compile and differentiates:
            raise FieldError(
                ("compile", axis),
                f"{name} differentiates the gradient, which torch.compile does not support: leave out compile",
            )
    own = spec.axis("algorithm")
    if spec.compile and own.get("first_order") is False and not own.get("inner_optimizer"):
        raise FieldError(
            ("compile", "algorithm.first_order", "algorithms"),
            f"{spec.algorithm} differentiates the gradient, which torch.compile does not support: leave out compile, "
            "or set algorithm.first_order",
        )
    if spec.warm_up >= spec.steps:
        raise FieldError(
            ("warm_up", "steps"), f"a warm-up of {spec.warm_up} steps takes all {spec.steps} steps of the run"
        )
    if spec.averaging in SWADS and not algorithm.pools_domains:
        raise FieldError(
            ("averaging", "algorithms"),
            f"{spec.averaging} re-estimates batch norms from the images of all domains together, but {spec.algorithm} "
            "reads one domain at a time: use ema, or no averaging",
        )
    if spec.averaging == "dfr":
        _check_refit(spec, algorithm)
    if spec.all_data and spec.averaging in (*SWADS, "wise_ft", "dfr"):
        raise FieldError(
            ("all_data", "averaging"),
            f"{spec.averaging} is chosen by held-out images, of which a second pass on all data has none: use ema or "
            "sma, or leave out all_data",
        )
    try:
        ANNEALERS[spec.annealer](**spec.axis("annealer")).check(num_domains, spec.steps)
    except ValueError as error:
        raise FieldError("annealers", str(error)) from error


def _check_refit(spec: RunSpec, algorithm: type[Algorithm]) -> None:
    """Check that the classifier can be fitted anew to the features, classes alike."""
    if spec.task != "classification":
        raise FieldError(("averaging", "task"), f"dfr weighs classes alike, and the task is {spec.task}")
    if algorithm.extend is not Algorithm.extend:
        raise FieldError(
            ("averaging", "algorithms"),
            f"dfr fits a linear classifier to the features, and {spec.algorithm} adds parts to the network",
        )
    if spec.class_vectors is not None:
        raise FieldError(
            ("averaging", "class_vectors"), "dfr fits the classifier anew, and that of class_vectors is given"
        )


def _check_ranks(spec: RunSpec, num_domains: int, ranks: Ranks) -> None:
    algorithm = ALGORITHMS[spec.algorithm]
    if spec.all_data:
        raise FieldError(
            "all_data",
            f"a second pass on all data trains on one device, not {ranks.size}: it reads the first one's files",
        )
    if spec.averaging == "dfr":
        raise FieldError("averaging", f"dfr trains on one device, not {ranks.size}: it fits all features at once")
    if algorithm.single_device is not None:
        raise FieldError(
            "algorithms", f"{spec.algorithm} trains on one device, not {ranks.size}: {algorithm.single_device}"
        )
    if num_domains == 1 and algorithm.mixes_images:
        raise FieldError(
            "algorithms",
            f"{spec.algorithm} with one source domain trains on one device, not {ranks.size}: it mixes the images",
        )
    if (reason := ANNEALERS[spec.annealer].single_device) is not None:
        raise FieldError("annealers", f"{spec.annealer} trains on one device, not {ranks.size}: {reason}")
    if algorithm.stepped and OPTIMIZERS[spec.optimizer].needs_graph:
        raise FieldError(
            "optimizers",
            f"{spec.optimizer} trains on one device, not {ranks.size}: it differentiates the gradient, and a sum of "
            "gradients over devices is not differentiable",
        )
    if ranks.sharded and algorithm.reads_heads:
        raise FieldError("algorithms", f"{spec.algorithm} reads the weights of its heads, which fsdp shards: use ddp")
    batch_size = spec.axis("data")["batch_size"]
    if batch_size % (spec.accumulate * ranks.size):
        parts = f"{spec.accumulate} parts on " if spec.accumulate > 1 else ""
        raise FieldError(
            ("data.batch_size", "accumulate"),
            f"a batch of {batch_size} images per domain cannot be split evenly into {parts}{ranks.size} devices",
        )
