import copy

import pytest
import torch
from torch import nn

from algorithms.made_up_batches import assert_resumes, built_steps, uneven_batches
from shiftproof.algorithms import ERM
from shiftproof.algorithms.arm import ARM
from shiftproof.annealing import Annealer
from shiftproof.models import Network, Normalisation, build_network
from shiftproof.protocol.settings import search_space, setting
from shiftproof.training import StepBuilder


def _network():
    return build_network("small_conv", (1, 16, 16), 3, dropout=0.0, seed=0).double()


def _algorithm(domains):
    torch.manual_seed(0)
    algorithm = ARM(_network(), domains).double()
    algorithm.build_optimizers(lambda params: torch.optim.SGD(params, lr=0.1))
    return algorithm


def _opened(algorithm):
    """Give the context weights, so that it has an effect."""
    torch.manual_seed(1)
    with torch.no_grad():
        torch.nn.init.normal_(algorithm.network.featurizer[0].weight[:, 1:])
    return algorithm


def _reference(network, batches):
    maps = network.context(torch.cat([images for images, _ in batches]))  # batch norm sees all domains
    losses, begin = [], 0
    for images, labels in batches:
        context = sum(maps[begin + i] for i in range(len(images))) / len(images)
        begin += len(images)
        terms = []
        for image, label in zip(images, labels, strict=True):
            logits = network.classifier(network.featurizer(torch.cat([image, context])[None]))[0]
            terms.append(logits.exp().sum().log() - logits[label])
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


def test_objective_and_one_update():
    algorithm, batches = _opened(_algorithm(3)), uneven_batches((3, 5, 1))
    network = copy.deepcopy(algorithm.network)
    loss = _reference(network, batches)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    taken = algorithm.update(batches, 1, lambda batches: lambda: algorithm.backward(batches))
    torch.testing.assert_close(taken, loss.detach(), rtol=1e-10, atol=0)
    for (name, p), before, g in zip(algorithm.network.named_parameters(), network.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.detach(), before.detach() - 0.1 * g, rtol=1e-8, atol=1e-12, msg=name)


def test_the_context_network_is_trained():
    algorithm = _algorithm(2)
    trained = {id(p) for group in algorithm.optimizers["all"].param_groups for p in group["params"]}
    assert {id(p) for p in algorithm.network.context.parameters()} <= trained
    start = copy.deepcopy(dict(algorithm.network.context.named_parameters()))
    builder = StepBuilder(algorithm, Annealer(), seed=0)
    for step in range(1, 4):
        builder.take(uneven_batches((4, 4)), step)
    for name, p in algorithm.network.context.named_parameters():
        # what a batch norm follows has no use for a bias
        assert not torch.equal(p, start[name]) or name in ("0.bias", "3.bias"), name


def test_it_starts_as_the_network_that_was_given():
    network, batches = _network(), uneven_batches((4, 4))
    expected = ERM(copy.deepcopy(network), 2).objective(batches)
    torch.testing.assert_close(ARM(network, 2).double().objective(batches), expected, rtol=1e-12, atol=0)


def test_in_evaluation_the_context_is_that_of_the_batch():
    algorithm = _opened(_algorithm(2)).eval()
    (images, _), (others, _) = uneven_batches((4, 4))
    network = algorithm.network
    context = sum(network.context(image[None]) for image in images) / 4
    for image, logits in zip(images, algorithm.predict(images), strict=True):
        alone = network.classifier(network.featurizer(torch.cat([image[None], context], dim=1)))[0]
        torch.testing.assert_close(logits, alone, rtol=1e-9, atol=1e-12)
    beside_others = algorithm.predict(torch.cat([images[:1], others]))[0]
    assert (beside_others - algorithm.predict(images)[0]).abs().max() > 1e-3
    assert algorithm.transductive


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "squeezenet1_1", "resnet18", "convnext_atto"])
def test_photographs_of_any_model_with_a_convolution_first(model):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = build_network(model, (3, 64, 64), 3, dropout=0.0, seed=0).eval()
    expected = network(images)
    algorithm = ARM(network, 1).eval()
    torch.testing.assert_close(algorithm.predict(images), expected, rtol=1e-4, atol=1e-5)
    algorithm.backward([(images, torch.tensor([0, 2]))])
    first = next(module for module in network.featurizer.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.grad[:, 3].abs().max() > 0  # the context will have an effect


def test_frozen_batch_norms_stay_frozen_and_those_of_the_context_train():
    network = build_network("resnet18", (3, 32, 32), 3, dropout=0.0, seed=0)
    network.freeze_batch_norm = True
    algorithm = ARM(network, 1).train()
    assert not algorithm.network.featurizer.bn1.training
    assert algorithm.network.context[1].training
    algorithm.objective([(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))])
    assert algorithm.network.context[1].num_batches_tracked == 1


def test_featurizers_that_do_not_begin_with_a_convolution_are_refused():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
    with pytest.raises(ValueError, match="must take the image's 1: it has no convolution"):
        ARM(Network(linear, 8, 3, Normalisation((0.5,), (0.5,))), 2)
    unshuffled = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"must take the image's 1: its first convolution is Conv2d\(4, 8"):
        ARM(Network(unshuffled, 8, 3, Normalisation((0.5,), (0.5,))), 2)


def test_resumed_it_continues_bit_equal():
    whole, again = (StepBuilder(_algorithm(2), Annealer(), seed=0) for _ in range(2))
    for step in (1, 2):
        whole.take(uneven_batches((3, 4), step), step)
    again.algorithm.load_state_dict(copy.deepcopy(whole.algorithm.state_dict()))
    for step in (3, 4):
        batches = uneven_batches((3, 4), step)
        assert torch.equal(whole.take(batches, step), again.take(batches, step))
    for name, value in whole.algorithm.state_dict().items():
        assert torch.equal(value, again.algorithm.state_dict()[name])


def test_the_extended_network_predicts_alone():
    algorithm = _opened(_algorithm(2))
    loaded = ARM.extend(_network()).double()
    loaded.load_state_dict(algorithm.network.state_dict())
    images = uneven_batches((4,))[0][0]
    assert torch.equal(loaded.eval()(images), algorithm.eval().predict(images))


def test_the_dialects_adapt_to_groups_of_the_size_of_a_training_batch():
    """As DomainBed's code does, if that size divides the number of images, and to all of them if not."""
    torch.manual_seed(0)
    algorithm = ARM(_network(), 2, evaluates_in_groups=True).double()
    _opened(algorithm)
    steps = built_steps(algorithm)
    steps.take(uneven_batches((4, 4)), 1)
    algorithm.eval()
    ((images, _),) = uneven_batches((12,))
    expected = torch.cat([algorithm.network(images[start : start + 4]) for start in (0, 4, 8)])
    torch.testing.assert_close(algorithm.predict(images), expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(algorithm.predict(images), algorithm.network(images))
    assert torch.equal(algorithm.predict(images[:10]), algorithm.network(images[:10]))
    for dialect, expected_option in (("domainbed", {"algorithm.evaluates_in_groups": True}), ("shiftproof", {})):
        values = setting(search_space("PACS", "photographs", True, "arm", "adam", "none", "short"), {}, 0, 0, dialect)
        assert {name: value for name, value in values.items() if name.startswith("algorithm.")} == expected_option


def test_a_run_that_adapts_to_groups_resumes():
    assert_resumes(lambda: (torch.manual_seed(0), ARM(_network(), 2, evaluates_in_groups=True).double())[1])
