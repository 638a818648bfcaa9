"""Gradients by domain, by sample and by layer, and passes through a model that leave no trace in it."""

from shiftproof.gradients.domains import (
    Direction,
    DomainGradient,
    DomainLosses,
    EvaluateDomain,
    check_domains,
    cosine,
    direction,
    domain_similarities,
    evaluated_domains,
    pairwise_cosines,
)
from shiftproof.gradients.kinds import check_dense, check_dense_layers, check_real
from shiftproof.gradients.modes import evaluation_mode, frozen_statistics
from shiftproof.gradients.samples import Loss, PerSampleGradients

__all__ = [
    "Direction",
    "DomainGradient",
    "DomainLosses",
    "EvaluateDomain",
    "Loss",
    "PerSampleGradients",
    "check_dense",
    "check_dense_layers",
    "check_domains",
    "check_real",
    "cosine",
    "direction",
    "domain_similarities",
    "evaluated_domains",
    "evaluation_mode",
    "frozen_statistics",
    "pairwise_cosines",
]
