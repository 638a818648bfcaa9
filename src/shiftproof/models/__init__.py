"""Networks: featurizers by name, with weights from files, and their linear classifier."""

from shiftproof.models.build import MODELS, build_network, default_image_size
from shiftproof.models.model import Featurizer, Model
from shiftproof.models.network import Network
from shiftproof.models.normalisation import Normalisation, check_normalisation
from shiftproof.models.timm_models import timm_names
from shiftproof.models.weights import (
    NORMALISATION,
    load_weights,
    read_weights,
    stated_normalisation,
    weights_fingerprint,
)

__all__ = [
    "MODELS",
    "NORMALISATION",
    "Featurizer",
    "Model",
    "Network",
    "Normalisation",
    "build_network",
    "check_normalisation",
    "default_image_size",
    "load_weights",
    "read_weights",
    "stated_normalisation",
    "timm_names",
    "weights_fingerprint",
]
