"""Annealers, which act around an optimizer's step. Needs torch and numpy only."""

from shiftproof.annealing.annealer import ANNEALERS, Annealer
from shiftproof.annealing.gga import GGA
from shiftproof.annealing.ggal import GGAL
from shiftproof.gradients import DomainLosses, domain_similarities

__all__ = ["ANNEALERS", "GGA", "GGAL", "Annealer", "DomainLosses", "domain_similarities"]
