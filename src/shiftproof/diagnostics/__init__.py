"""Diagnostics: what the theory of GENIE speaks of, measured in any training loop. The core needs torch and numpy."""

from shiftproof.diagnostics.agreement import Cosines, GradientAgreement, agreement_of, gradient_agreement
from shiftproof.diagnostics.balance import Balance, BalanceHistory, UpdateBalance, balance, balance_curves, heat_map
from shiftproof.diagnostics.features import (
    Embedding,
    Separability,
    Separation,
    embed,
    embedding_figure,
    featurize,
    project,
    separation,
)
from shiftproof.diagnostics.filters import filter_normalised_directions
from shiftproof.diagnostics.landscape import Simulation, simulate
from shiftproof.diagnostics.mean_loss import flat_weights
from shiftproof.diagnostics.moments import GradientMoments, gradient_moments
from shiftproof.diagnostics.osgr import (
    GenieDistance,
    HalvesEstimate,
    StepContributions,
    genie_distance,
    genie_factor,
    genie_osgr,
    osgr,
    osgr_by_definition,
    osgr_of_gradients,
    osgr_of_moments,
    preconditioners,
    step_contributions,
    step_ratios,
    uniform_osgr,
)
from shiftproof.diagnostics.plane import Plane, losses_on_plane, plane_figure, principal_plane
from shiftproof.diagnostics.preconditioner import preconditioner
from shiftproof.diagnostics.ratio import Ratio, ratio_of_means
from shiftproof.diagnostics.recorder import Recorder
from shiftproof.diagnostics.sharpness import (
    Eigenvalue,
    Sharpness,
    average_increase,
    hessian_trace,
    largest_eigenvalue,
    sharpness,
    worst_increase,
)

__all__ = [
    "Balance",
    "BalanceHistory",
    "Cosines",
    "Eigenvalue",
    "Embedding",
    "GenieDistance",
    "GradientAgreement",
    "GradientMoments",
    "HalvesEstimate",
    "Plane",
    "Ratio",
    "Recorder",
    "Separability",
    "Separation",
    "Sharpness",
    "Simulation",
    "StepContributions",
    "UpdateBalance",
    "agreement_of",
    "average_increase",
    "balance",
    "balance_curves",
    "embed",
    "embedding_figure",
    "featurize",
    "filter_normalised_directions",
    "flat_weights",
    "genie_distance",
    "genie_factor",
    "genie_osgr",
    "gradient_agreement",
    "gradient_moments",
    "heat_map",
    "hessian_trace",
    "largest_eigenvalue",
    "losses_on_plane",
    "osgr",
    "osgr_by_definition",
    "osgr_of_gradients",
    "osgr_of_moments",
    "plane_figure",
    "preconditioner",
    "preconditioners",
    "principal_plane",
    "project",
    "ratio_of_means",
    "separation",
    "sharpness",
    "simulate",
    "step_contributions",
    "step_ratios",
    "uniform_osgr",
    "worst_increase",
]
