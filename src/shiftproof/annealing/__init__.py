"""Annealers: what happens around a step. Needs torch and numpy only."""

from shiftproof.annealing.annealer import ANNEALERS, Annealer

__all__ = ["ANNEALERS", "Annealer"]
