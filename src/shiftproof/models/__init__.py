"""Networks: featurizers by name, with weights from files, and their linear classifier."""

from shiftproof.models.build import MODELS, build_network, default_image_size
from shiftproof.models.network import Network, Normalisation
from shiftproof.models.weights import load_weights, read_weights, weights_fingerprint

__all__ = [
    "MODELS",
    "Network",
    "Normalisation",
    "build_network",
    "default_image_size",
    "load_weights",
    "read_weights",
    "weights_fingerprint",
]
