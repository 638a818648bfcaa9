import math

import pytest
import torch
from torch.nn import functional as F

from shiftproof.protocol.validation import training_domain_validation, validation_loss
from shiftproof.training.evaluation import evaluate


def _batches(count=(5, 3)):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in count
    ]  # of logits, which predict returns as they are


def test_scores_are_those_of_all_images():
    batches = _batches()
    score = evaluate(lambda logits: logits, batches, 4, "float32")
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    right = logits.argmax(1) == labels
    assert score["count"] == 8
    assert score["accuracy"] == right.double().mean().item()
    assert score["loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)
    present = labels.unique().tolist()
    assert 1 < len(present) < 4
    for label in range(4):
        expected = right[labels == label].double().mean().item() if label in present else None
        assert score["per_class"][label] == expected


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_logits_are_of_the_precision_and_their_loss_is_not(precision, dtype):
    made = []

    def predict(images):
        made.append(4 * images @ torch.eye(4))  # a product of matrices, which autocast makes in bfloat16
        return made[-1]

    batches = _batches()
    score = evaluate(predict, batches, 4, precision)
    logits, labels = torch.cat(made), torch.cat([labels for _, labels in batches])
    assert logits.dtype == dtype
    assert score["loss"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)


def test_a_loss_that_is_not_finite_is_none():
    logits = torch.full((2, 3), -math.inf)
    score = evaluate(lambda logits: logits, [(logits, torch.tensor([0, 1]))], 3, "float32")
    assert score["loss"] is None
    assert score["accuracy"] == 0.5


def test_validations_are_unweighted_means_over_the_sources():
    def score(accuracy, loss):
        return {"out": {"accuracy": accuracy, "loss": loss, "count": 100 * accuracy}}

    record = {"domains": {"a": score(0.5, 1.0), "t": score(0.0, 9.0), "b": score(1.0, 3.0)}}
    assert training_domain_validation(record, ["t"]) == 0.75
    assert validation_loss(record, ["t"]) == 2.0
    record["domains"]["a"]["out"]["loss"] = None
    assert validation_loss(record, ["t"]) == math.inf
