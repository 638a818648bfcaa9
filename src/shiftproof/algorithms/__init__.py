"""Domain-generalization algorithms: one class each, on one contract."""

from shiftproof.algorithms.algorithm import ALGORITHMS, Algorithm, Batch, Closure, OptimizerFactory
from shiftproof.algorithms.erm import ERM

__all__ = ["ALGORITHMS", "ERM", "Algorithm", "Batch", "Closure", "OptimizerFactory"]
