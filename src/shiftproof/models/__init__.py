"""Networks: featurizers by name, with weights from files, and their linear classifier."""

from shiftproof.models.blocks import Block, blocks, parts
from shiftproof.models.build import MODELS, build_network, default_image_size, model_hparams, takes_pictures
from shiftproof.models.hub import HUB, hub_weights, published_weights
from shiftproof.models.model import Featurizer, Model, Published
from shiftproof.models.network import Network
from shiftproof.models.normalisation import Normalisation, check_normalisation
from shiftproof.models.tasks import CosineClassifier, Loss, Quantity, loss_of, weighted_cross_entropy
from shiftproof.models.timm_models import timm_names
from shiftproof.models.trained import check_trained, freeze_all_but
from shiftproof.models.trunk import Cut, Trunk, cut
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
    "Block",
    "CosineClassifier",
    "Cut",
    "Featurizer",
    "Loss",
    "Model",
    "Network",
    "Normalisation",
    "Published",
    "Quantity",
    "Trunk",
    "blocks",
    "build_network",
    "check_normalisation",
    "check_trained",
    "cut",
    "default_image_size",
    "freeze_all_but",
    "hub_weights",
    "load_weights",
    "loss_of",
    "model_hparams",
    "parts",
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
