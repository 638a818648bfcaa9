"""Networks: featurizers by name, with weights from files, and their linear classifier."""

from shiftproof.models.build import MODELS, build_network, default_image_size, model_hparams, takes_pictures
from shiftproof.models.hub import HUB, hub_weights, published_weights
from shiftproof.models.model import Featurizer, Model, Published
from shiftproof.models.network import Network
from shiftproof.models.normalisation import Normalisation, check_normalisation
from shiftproof.models.tasks import Loss, Quantity, weighted_cross_entropy
from shiftproof.models.timm_models import timm_names
from shiftproof.models.weights import (
    LICENCE,
    NORMALISATION,
    load_weights,
    read_weights,
    stated_facts,
    stated_normalisation,
    weights_fingerprint,
    weights_name,
)

__all__ = [
    "HUB",
    "LICENCE",
    "MODELS",
    "NORMALISATION",
    "Featurizer",
    "Loss",
    "Model",
    "Network",
    "Normalisation",
    "Published",
    "Quantity",
    "build_network",
    "check_normalisation",
    "default_image_size",
    "hub_weights",
    "load_weights",
    "model_hparams",
    "published_weights",
    "read_weights",
    "stated_facts",
    "stated_normalisation",
    "takes_pictures",
    "timm_names",
    "weighted_cross_entropy",
    "weights_fingerprint",
    "weights_name",
]
