"""Learning rates by block: what each parameter gets, and that every optimizer and algorithm steps by it."""

import copy

import pytest
import torch
from torch import nn

from algorithms.made_up_batches import uneven_batches
from algorithms.made_up_runs import FROM_SCRATCH
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.annealing import Annealer
from shiftproof.base.field_error import FieldError
from shiftproof.models import build_network
from shiftproof.optim import OPTIMIZERS
from shiftproof.studies import Study, make_plan
from shiftproof.training import StepBuilder, build_steps, train
from shiftproof.training.layer_rates import layer_ratios
from shiftproof.training.optimizer_factory import RunOptimizers
from training.killed import train_killed_at

CPU = torch.device("cpu")


def _ratios(model, shape, decay):
    featurizer = build_network(model, shape, 3, dropout=0.0, seed=0).featurizer
    ratios = layer_ratios(featurizer, decay)
    assert ratios.keys() == set(featurizer.parameters())
    return {name: ratios[p] for name, p in featurizer.named_parameters()}


def test_a_residual_network_has_a_rate_for_the_stem_and_for_every_residual_block():
    found = _ratios("resnet18", (3, 32, 32), 0.5)
    blocks = ["conv1", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2))]
    for depth, block in enumerate(blocks):
        rates = {rate for name, rate in found.items() if name.startswith(f"{block}.")}
        assert rates == {0.5 ** (9 - depth)}
    assert found["bn1.weight"] == 0.5**9  # the stem's


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet18.a1_in1k"])
def test_rates_are_those_of_timm(model):
    import timm
    from timm.optim import param_groups_layer_decay

    size = {"img_size": 32} if model.startswith("vit") else {}
    whole = timm.create_model(model, num_classes=3, **size)
    groups = param_groups_layer_decay(whole, weight_decay=0.0, layer_decay=0.75)
    scales = {p: group["lr_scale"] for group in groups for p in group["params"]}
    expected = {name: scales[p] for name, p in whole.named_parameters()}
    head = {expected.pop(name) for name in list(expected) if name.startswith(("head", "fc"))}
    assert head == {1.0}
    assert _ratios(model, (3, 32, 32), 0.75) == pytest.approx(expected, rel=1e-12)


class _Bare(nn.Module):
    """A parameter of its own before two layers."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)


def test_parameters_of_no_block_have_the_first_ones_rate():
    featurizer = _Bare()
    ratios = {name: layer_ratios(featurizer, 0.1)[p] for name, p in featurizer.named_parameters()}
    expected = {"shift": 0.01, "first.weight": 0.01, "first.bias": 0.01, "last.weight": 0.1, "last.bias": 0.1}
    assert ratios == pytest.approx(expected)


def test_groups_keep_the_order_of_the_parameters_and_the_rest_has_the_runs_rate():
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(5)]
    ratios = {weights[0]: 0.25, weights[1]: 0.25, weights[2]: 0.5, weights[3]: 1.0}
    factory = RunOptimizers("adam", 1, {"lr": 0.1, "weight_decay": 0.3}, ratios)
    groups = factory(weights, lr_ratio=2.0, beta1=0.5).param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(p) for p in some] for some in (weights[:2], weights[2:3], weights[3:])
    ]
    assert [group["lr"] for group in groups] == pytest.approx([0.05, 0.1, 0.2])
    assert {group["betas"] for group in groups} == {(0.5, 0.999)}
    assert {group["weight_decay"] for group in groups} == {0.3}


def _trained(optimizer, rates):
    """The weights after three steps, with a rate for every parameter of the network by its name."""
    entry = OPTIMIZERS[optimizer]
    defaults = {name: hparam.default for name, hparam in entry.search_space(False, "short").items()}
    algorithm = ERM(build_network("small_lenet", (1, 16, 16), 4, dropout=0.0, seed=0), 2)
    ratios = {p: rates(name) for name, p in algorithm.network.named_parameters()}
    algorithm.build_optimizers(RunOptimizers(optimizer, 3, {**defaults, "weight_decay": 0.1}, ratios))
    steps = StepBuilder(algorithm, Annealer(), seed=0, create_graph=entry.needs_graph)
    for step in (1, 2, 3):
        steps.take([(images.float(), labels) for images, labels in uneven_batches(seed=step)], step)
    return {name: p.detach().clone() for name, p in algorithm.network.named_parameters()}


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_steps_several_groups_as_one_and_each_by_its_own_rate(optimizer):
    alike = _trained(optimizer, lambda name: 1.0)
    # nearly alike, so that what is in groups of its own can be compared with what is in one, random draws included
    split = _trained(optimizer, lambda name: 1 - 1e-7 * (20 - int(name.split(".")[1])) if "featurizer" in name else 1.0)
    for name, p in alike.items():
        torch.testing.assert_close(split[name], p, rtol=1e-3, atol=1e-4)
    start = dict(build_network("small_lenet", (1, 16, 16), 4, dropout=0.0, seed=0).named_parameters())
    slow = _trained(optimizer, lambda name: 1e-12 if name.startswith("featurizer.0.") else 1.0)
    for name, p in start.items():
        if name.startswith("featurizer.0."):
            torch.testing.assert_close(slow[name], p.detach(), rtol=1e-5, atol=1e-7)
        else:
            assert not torch.allclose(slow[name], p.detach(), rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("algorithm", FROM_SCRATCH)
def test_every_algorithm_has_the_rates(algorithm, make_spec, digits):
    """A featurizer's parameters have the rates of their blocks; heads, discriminators and encoders have their own."""
    entry = ALGORITHMS[algorithm]
    hparams = {f"algorithm.{name}": hparam.default for name, hparam in {**entry.hparams, **entry.short_hparams}.items()}
    hparams |= {"data.batch_size": 4, "model.dropout": 0.2, "optimizer.lr": 0.01}
    spec = make_spec(algorithm=algorithm, hparams=hparams, layer_decay=0.1)
    built = build_steps(spec, digits, CPU, None).algorithm
    rates = {p: group["lr"] for one in built.optimizers.values() for group in one.param_groups for p in group["params"]}
    assert rates.keys() == {p for p in built.parameters() if p.requires_grad}
    for name, p in built.named_parameters():
        if not p.requires_grad:
            continue
        expected = 0.01
        if name.startswith("network.featurizer."):
            expected *= 0.1 ** (3 - int(name.split(".")[2]) // 3)  # a convolution, a normalisation and a unit each
        elif name.startswith("encoders."):
            expected *= 10
        assert rates[p] == pytest.approx(expected), name


@pytest.mark.parametrize("trained", ["blocks:1", "12"])
def test_a_kept_trunk_changes_no_rate(trained, make_spec, digits):
    """Blocks are those of the whole network; what is left of it behind its trunk may have none."""
    facts = {"model": "small_lenet", "trained": trained, "layer_decay": 0.5, "weights": "a file"}
    for cache in ("none", "float32"):
        steps = build_steps(make_spec(**facts, cache=cache), digits, CPU, None)
        assert (steps.cut is None) == (cache == "none")
        groups = steps.algorithm.optimizers["all"].param_groups
        assert [group["lr"] for group in groups] == pytest.approx([0.005, 0.01])
        assert {id(p) for p in groups[1]["params"]} == {id(p) for p in steps.algorithm.network.classifier.parameters()}


def test_mldg_steps_inside_by_the_rate_of_each_weight():
    algorithm = ALGORITHMS["mldg"](build_network("small_conv", (1, 16, 16), 4, dropout=0.0, seed=0).double(), 2)
    ratios = layer_ratios(algorithm.network.featurizer, 0.5)
    algorithm.build_optimizers(RunOptimizers("sgd", 1, {"lr": 0.3}, ratios))
    batches = uneven_batches()
    torch.manual_seed(3)
    loss = algorithm.objective(batches)
    torch.manual_seed(3)
    test, train_on = (batches[i] for i in torch.randperm(2).tolist())
    plain, moved = algorithm.network, copy.deepcopy(algorithm.network)
    first = plain.loss(plain(train_on[0]), train_on[1])
    gradients = torch.autograd.grad(first, list(plain.parameters()))
    with torch.no_grad():
        for p, q, gradient in zip(moved.parameters(), plain.parameters(), gradients, strict=True):
            p -= 0.3 * ratios.get(q, 1.0) * gradient
    expected = first + algorithm.beta * moved.loss(moved(test[0]), test[1])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("optimizer", ["gsam", "genie", "genie_adamw", "adahessian"])
def test_a_killed_run_continues_with_its_rates(optimizer, make_spec, digits, tmp_path):
    spec = make_spec(optimizer=optimizer, layer_decay=0.5, schedule="linear", steps=8)
    undisturbed = train(spec, digits, tmp_path / "a", device=CPU)
    for step in (2, 6):
        train_killed_at(step, spec, digits, tmp_path / "b")
    resumed = train(spec, digits, tmp_path / "b", device=CPU)
    assert {**resumed, "seconds": None} == {**undisturbed, "seconds": None}
    same_rates = train(make_spec(optimizer=optimizer, schedule="linear", steps=8), digits, tmp_path / "c", device=CPU)
    assert same_rates["weights_sha256"] != undisturbed["weights_sha256"]


def test_what_has_no_weights_before_the_classifier_is_refused():
    with pytest.raises(
        FieldError, match="layer_decay acts on the weights before the classifier, and none of them"
    ) as e:
        make_plan(Study(datasets=("vowels",), model="linear", optimizers=("adam",), trials=1, layer_decay=0.5))
    assert e.value.fields == ("layer_decay", "trained", "model")
    with pytest.raises(FieldError, match=r"layer_decay must be at most 1, not 1\.5"):
        Study(layer_decay=1.5)
    with pytest.raises(FieldError, match=r"layer_decay must be a number above 0, not 0"):
        Study(layer_decay=0)
