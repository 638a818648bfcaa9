import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algorithms.made_up_batches import assert_resumes, built_steps, defaults, double_network, uneven_batches
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.algorithms.miro import MIRO
from shiftproof.models import Network, Normalisation, build_network
from shiftproof.training import results_version


def _moved(weight=0.1, seed=1):
    """Give the algorithm somewhere away from its start, and a copy of the start."""
    algorithm = MIRO(double_network(), 2, weight).double()
    start = copy.deepcopy(algorithm.network)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in [*algorithm.network.parameters(), *algorithm.encoders]:
            p.add_(0.1 * torch.randn_like(p))
    return algorithm, start


def _transcription(algorithm, start, batches):
    """Algorithm 1, element by element."""
    images, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    z, z0 = images, images
    penalty = 0.0
    for layer, (now, before) in enumerate(zip(algorithm.network.featurizer, start.featurizer, strict=True)):
        z, z0 = now(z), before(z0).detach()
        if layer in (2, 8):
            b = algorithm.encoders[0 if layer == 2 else 1]
            total = 0.0
            for c in range(z.shape[1]):
                variance = torch.log(1 + b[c].exp()) + 1e-5
                for value, value0 in zip(z[:, c].flatten(), z0[:, c].flatten(), strict=True):
                    total = total + (value - value0) ** 2 / variance + variance.log()
            penalty = penalty + total / z.numel() / 2
    return F.cross_entropy(algorithm.network.classifier(z), labels), penalty


@pytest.mark.parametrize("weight", [0.1, 3.0])
def test_objective_and_gradient_are_the_transcription(weight):
    algorithm, start = _moved(weight)
    batches = uneven_batches((2, 1))
    loss, penalty = _transcription(algorithm, start, batches)
    expected = loss + weight * penalty
    parameters = [*algorithm.network.parameters(), *algorithm.encoders]
    found = algorithm.objective(batches)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), rtol=1e-8, atol=1e-11
    )


def test_the_penalty_at_the_start_is_that_of_the_start_variance():
    network, batches = double_network(), uneven_batches()
    erm = ERM(network, 2).objective(batches)
    for weight in (0.0, 0.1, 1.0):
        loss = MIRO(copy.deepcopy(network), 2, weight).double().objective(batches)
        torch.testing.assert_close(loss - erm, weight * torch.tensor(math.log(0.1)).double(), rtol=1e-6, atol=1e-12)


def test_an_update_moves_the_encoders_ten_times_as_fast_and_leaves_the_start():
    algorithm, _ = _moved()
    before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
    steps = built_steps(algorithm, "sgd", lr=0.01, momentum=0.0)
    assert list(algorithm.optimizers) == ["all"]
    steps.take(uneven_batches(), 1)
    assert steps.passes == 1
    for name, p in algorithm.named_parameters():
        if name.startswith("start."):
            assert torch.equal(p, before[name])
            assert p.grad is None
        else:
            ratio = 10 if name.startswith("encoders.") else 1
            torch.testing.assert_close(p.detach(), before[name] - 0.01 * ratio * p.grad, rtol=1e-12, atol=1e-15)
            assert not torch.equal(p, before[name]), name


def test_the_penalty_holds_the_features_near_the_start():
    distances = []
    for weight in (0.0, 10.0):
        algorithm = MIRO(double_network(), 2, weight).double()
        steps = built_steps(algorithm)
        for step in range(1, 21):
            steps.take(uneven_batches((4, 6), step), step)
        images = uneven_batches((8,), seed=50)[0][0]
        distances.append((algorithm.network.featurizer(images) - algorithm.start(images)).norm().item())
    assert distances[1] < 0.5 * distances[0]


def test_the_start_stays_in_evaluation_mode_and_keeps_its_statistics():
    network = build_network("resnet18", (3, 64, 64), 3, dropout=0.0, seed=0)
    algorithm = MIRO(network, 1)
    assert [b.numel() for b in algorithm.encoders] == [64, 64, 128, 256, 512]
    steps = built_steps(algorithm)
    assert algorithm.training
    assert not any(m.training for m in algorithm.start.modules())
    before = {name: b.clone() for name, b in algorithm.start.named_buffers()}
    steps.take([(torch.randn(4, 3, 64, 64), torch.arange(4) % 3)], 1)
    assert all(torch.equal(b, before[name]) for name, b in algorithm.start.named_buffers())
    assert network.featurizer.bn1.num_batches_tracked == 1  # the network's own moved
    with torch.autocast("cpu", torch.bfloat16):
        loss = algorithm.objective([(torch.randn(4, 3, 64, 64), torch.arange(4) % 3)])
    assert loss.isfinite()
    assert loss.dtype == torch.float32


def test_a_vision_transformer_has_an_encoder_per_channel_of_its_tokens():
    network = build_network("vit_tiny_patch16_224", (3, 32, 32), 3, dropout=0.0, seed=0)
    algorithm = MIRO(network, 1, penalty_weight=1.0)
    assert [b.numel() for b in algorithm.encoders] == [192] * 5
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))]
    with torch.no_grad():
        algorithm.encoders[4].copy_(torch.linspace(-1, 1, 192))
    penalty = algorithm.objective(batches) - ERM(network, 1).objective(batches)
    expected = (4 * math.log(0.1) + torch.log1p(torch.linspace(-1, 1, 192).exp()).add(1e-5).log().mean()) / 2
    torch.testing.assert_close(penalty, expected, rtol=1e-5, atol=1e-5)


def test_a_featurizer_without_stages_is_held_at_its_features():
    torch.manual_seed(0)
    featurizer = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, dtype=torch.float64), nn.Tanh())
    network = Network(featurizer, 3, 2, Normalisation((0.5,), (0.5,)), image_shape=(1, 2, 2)).double()
    algorithm = MIRO(network, 1, penalty_weight=2.0).double()
    batches = [(torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))]
    with torch.no_grad():
        start = featurizer(batches[0][0])
        featurizer[1].weight.add_(0.5)
        now = featurizer(batches[0][0])
    expected = ERM(network, 1).objective(batches) + ((now - start) ** 2 / 0.1 + math.log(0.1)).mean()
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-6, atol=0)


def test_a_compiled_network_is_held_too():
    algorithm, _ = _moved()
    batches = uneven_batches()
    expected = algorithm.objective(batches)
    algorithm.network.compile(backend="eager")
    torch.testing.assert_close(algorithm.objective(batches), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("optimizer", "sizes"), [("adam", (6,)), ("sam", (4, 2, 6)), ("genie", (2, 4, 1, 3, 2))])
def test_resume_is_bit_equal(optimizer, sizes):
    assert_resumes(lambda: MIRO(double_network(0.1), len(sizes)).double(), optimizer, sizes=sizes)


def test_accumulated_parts_give_the_gradient_of_the_whole():
    gradients = []
    for accumulate in (1, 2):
        algorithm, _ = _moved()
        built_steps(algorithm, "sgd", accumulate=accumulate, momentum=0.0).take(uneven_batches((4, 4)), 1)
        gradients.append([p.grad for p in algorithm.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match=f"Invalid penalty_weight value: {weight}; it must be at least 0"):
        MIRO(double_network(), 2, weight)


def test_it_is_registered_with_its_defaults():
    assert ALGORITHMS["miro"] is MIRO
    registered, constructed = defaults(MIRO)
    assert registered == constructed


def test_the_penalty_on_a_residual_network_is_the_one_of_the_authors():
    """Their stages, written out: the stem with its max-pool and four layers, weights moved from the start."""
    network = build_network("resnet18", (3, 64, 64), 3, dropout=0.0, seed=0).double().eval()
    algorithm = MIRO(network, 2, penalty_weight=1.0).double()
    algorithm.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in network.featurizer.parameters():
            p += 0.02 * p.abs().mean() * torch.randn_like(p)
    batches = [(torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 2])) for _ in range(2)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def stages(net):
        z = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        found = [z]
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            z = layer(z)
            found.append(z)
        return found

    penalty = sum(
        ((z - start) ** 2 / 0.1 + math.log(0.1)).mean() / 2
        for z, start in zip(stages(network.featurizer), stages(algorithm.start), strict=True)
    )
    expected = F.cross_entropy(network(images), labels) + penalty
    loss = algorithm.objective(batches)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
    parameters = [p for name, p in network.named_parameters() if "classifier" not in name]
    gradients = [torch.autograd.grad(one, parameters, retain_graph=True) for one in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


def test_only_its_own_results_are_of_a_later_version():
    assert (results_version("miro"), results_version("erm"), results_version("mixstyle")) == (7, 6, 6)
    assert (results_version("rsc"), results_version("rsc", "balanced"), results_version("erm", "balanced")) == (6, 7, 6)
