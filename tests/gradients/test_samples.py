"""Sums of per-sample gradients against one float64 backward pass per sample."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftproof.gradients.samples import PerSampleGradients

CLASSES = 5


class Tied(nn.Module):
    """The classifier's weight is that of the first layer, transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.shared(self.shared(x).tanh()).tanh())


class Outside(nn.Module):
    """Uses a weight by the layer's call and once more without it, and has a token, a scale and an unused layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.unused = nn.Linear(6, 6), nn.Linear(6, CLASSES), nn.Linear(2, 2)
        self.token, self.scale = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.rand(6))

    def forward(self, x):
        hidden = self.layer(x + self.token).tanh() * self.scale
        return self.head(hidden @ self.layer.weight)


class ActivatedNorm(nn.BatchNorm2d):
    """A subclass that does more than its base, as timm's do."""

    def forward(self, x):
        return super().forward(x).relu()


class PixelMixing(nn.Module):
    """Calls its layers on rows that are not samples, and on samples that are not first."""

    def __init__(self):
        super().__init__()
        self.rows, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):  # (n, 2, 3); with two samples positions are as many
        hidden = self.rows(x.flatten(0, 1)).tanh().view(len(x), 2, 4)
        return self.head(self.second(hidden.transpose(0, 1)).tanh().mean(0))


def small_conv():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, padding=1), nn.GroupNorm(4, 8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.GroupNorm(4, 8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, CLASSES),
    )  # fmt: skip


def batch_norms():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), ActivatedNorm(6),
        nn.Flatten(), nn.Linear(96, 7), nn.BatchNorm1d(7), nn.Linear(7, CLASSES),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.uniform_(0.5, 1.5)
    return model


def odd_convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2), nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding="same", padding_mode="circular", bias=False), nn.Tanh(),
        nn.Conv2d(6, 12, 3, padding=1, padding_mode="reflect", groups=6), nn.Tanh(),
        nn.Conv2d(12, 4, 1, stride=2), nn.Flatten(2),
        nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=1), nn.Tanh(),
        nn.Unflatten(2, (2, 2, 1)), nn.Conv3d(6, 4, (2, 1, 1), groups=2), nn.Tanh(),
        nn.Flatten(), nn.LazyLinear(CLASSES),
    )  # fmt: skip


def sequences():
    return nn.Sequential(
        nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(),
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 4),
        nn.LayerNorm((6, 4)), nn.Flatten(), nn.Linear(24, CLASSES),
    )  # fmt: skip


def vit():
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=8, depth=2, num_heads=2, init_values=0.1
    )


def squeezenet():
    models = pytest.importorskip("torchvision.models")
    return models.squeezenet1_1(num_classes=CLASSES)


NETS = {
    "small_conv": (small_conv, (1, 9, 9)),
    "batch_norms": (batch_norms, (1, 8, 8)),
    "odd_convolutions": (odd_convolutions, (2, 7, 6)),
    "sequences": (sequences, (6, 3)),
    "vit": (vit, (1, 8, 8)),
    "squeezenet": (squeezenet, (3, 32, 32)),
    "tied": (Tied, (6,)),
    "twice": (Twice, (6,)),
    "outside": (Outside, (6,)),
    "pixel_mixing": (PixelMixing, (2, 3)),
}


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    factory, shape = NETS[name]
    samples = 3 if name == "squeezenet" else 7
    model, inputs = factory().to(dtype), torch.randn(samples, *shape, dtype=dtype)
    model(inputs)  # makes lazy layers
    return model, inputs, torch.randint(CLASSES, (samples,))


def one_by_one(model, inputs, targets, loss=F.cross_entropy):
    """Losses, sums and squares by one float64 backward pass per sample."""
    model, inputs = copy.deepcopy(model).double().eval(), inputs.double()
    model.zero_grad()
    losses = []
    sums, squares = ({name: torch.zeros_like(p) for name, p in model.named_parameters()} for _ in range(2))
    for sample, target in zip(inputs.split(1), targets.split(1), strict=True):
        model.zero_grad()
        value = loss(model(sample), target)
        value.backward()
        losses.append(value.detach())
        for name, p in model.named_parameters():
            if p.grad is not None:
                sums[name] += p.grad
                squares[name] += p.grad**2
    return torch.stack(losses), sums, squares


def assert_equal(result, expected, tolerance):
    losses, sums, squares = expected
    torch.testing.assert_close(result.losses.double(), losses, rtol=tolerance, atol=tolerance)
    for found, wanted in ((result.sums, sums), (result.squares, squares)):
        assert list(found) == list(wanted)
        for name, values in wanted.items():
            atol = tolerance * max(float(values.abs().max()), tolerance)
            torch.testing.assert_close(
                found[name].double(), values, rtol=tolerance, atol=atol, msg=partial("{}: {}".format, name)
            )


def vectorised(gradients):
    """Names of the parameters that do not take the formulas."""
    done = {name for layer in gradients._layers for name in layer.names.values()}
    return {name for name in gradients._names if name not in done}


@pytest.mark.parametrize("name", NETS)
def test_the_sums_are_those_of_single_backward_passes(name):
    model, inputs, targets = build(name)
    expected = one_by_one(model, inputs, targets)
    gradients = PerSampleGradients(model, F.cross_entropy)
    for _ in range(2):  # the first call decides how, the second repeats it
        assert_equal(gradients(inputs, targets), expected, 1e-10)
    assert_equal(gradients(inputs[:1], targets[:1]), one_by_one(model, inputs[:1], targets[:1]), 1e-10)


@pytest.mark.parametrize("name", ["small_conv", "batch_norms", "odd_convolutions", "squeezenet"])
def test_float32_keeps_its_precision_and_any_memory_format(name):
    model, inputs, targets = build(name, torch.float32)
    gradients = PerSampleGradients(model, F.cross_entropy)
    assert gradients(inputs, targets).sums[gradients._names[0]].dtype == torch.float32
    expected = one_by_one(model, inputs, targets)
    assert_equal(gradients(inputs, targets), expected, 2e-4)
    formatted = {"memory_format": torch.channels_last}
    assert_equal(gradients(inputs.contiguous(**formatted), targets), expected, 2e-4)
    if name != "odd_convolutions":  # its three-dimensional weights have no such format
        again = PerSampleGradients(model.to(**formatted), F.cross_entropy)
        assert_equal(again(inputs.contiguous(**formatted), targets), expected, 2e-4)


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("small_conv", set()),
        ("batch_norms", {"4.weight", "4.bias"}),
        ("odd_convolutions", set()),
        ("squeezenet", set()),
        ("vit", {"cls_token", "pos_embed", "blocks.0.ls1.gamma", "blocks.1.ls2.gamma"}),
        ("tied", {"first.weight"}),
        ("twice", {"shared.weight", "shared.bias"}),
        ("outside", {"layer.weight", "token", "scale", "unused.weight", "unused.bias"}),
        ("pixel_mixing", {"rows.weight", "rows.bias", "second.weight", "second.bias"}),
        ("sequences", {"3.self_attn.in_proj_weight", "3.self_attn.out_proj.weight"}),
    ],
)
def test_only_what_has_no_formula_is_vectorised(name, slow):
    model, inputs, targets = build(name)
    gradients = PerSampleGradients(model, F.cross_entropy)
    gradients(inputs, targets)
    found = vectorised(gradients)
    assert slow <= found
    if name in ("vit", "sequences"):
        assert not [n for n in found if "norm" in n or "mlp" in n or "qkv" in n or n.startswith(("0.", "4.", "5."))]
    else:
        assert found == slow


@pytest.mark.parametrize("name", ["small_conv", "outside", "twice"])
def test_any_mean_loss_is_taken_sample_by_sample(name):
    def weighted(outputs, targets):
        return 2 * F.cross_entropy(outputs, targets, weight=torch.arange(1.0, 6).to(outputs)) + outputs.square().mean()

    model, inputs, targets = build(name)
    expected = one_by_one(model, inputs, targets, weighted)
    assert_equal(PerSampleGradients(model, weighted)(inputs, targets), expected, 1e-10)


def test_a_batch_norm_without_statistics_sees_batches_of_one():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(144, 5),
    ).double()
    inputs, targets = torch.randn(6, 1, 8, 8).double(), torch.randint(5, (6,))
    result = PerSampleGradients(model, F.cross_entropy)(inputs, targets)
    assert_equal(result, one_by_one(model, inputs, targets), 1e-9)


def test_a_classifier_that_starts_at_zero_hides_no_wrong_formula():
    model, inputs, targets = build("batch_norms")
    for p in model[-1].parameters():
        nn.init.zeros_(p)
    gradients = PerSampleGradients(model, F.cross_entropy)
    assert float(gradients(inputs, targets).squares["0.weight"].abs().max()) == 0
    assert vectorised(gradients) == {"4.weight", "4.bias"}
    nn.init.normal_(model[-1].weight)
    assert_equal(gradients(inputs, targets), one_by_one(model, inputs, targets), 1e-10)


@pytest.mark.parametrize("name", ["small_conv", "batch_norms", "outside"])
def test_nothing_is_changed(name):
    model, inputs, targets = build(name)
    model.train()
    if name == "batch_norms":
        model[1].training = False  # frozen, as in many fine-tuned networks
    F.cross_entropy(model(inputs), targets).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    drawn = torch.random.get_rng_state()
    with torch.no_grad():
        PerSampleGradients(model, F.cross_entropy)(inputs.requires_grad_(), targets)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert inputs.grad is None
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.requires_grad
        assert (p.grad is None and gradient is None) or torch.equal(p.grad, gradient)
    assert not any(module._forward_hooks for module in model.modules())


def test_everything_is_put_back_after_an_error():
    model, inputs, targets = build("small_conv")
    with pytest.raises(IndexError, match=r"out of (bounds|range)"):
        PerSampleGradients(model, F.cross_entropy)(inputs, targets + CLASSES)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_graph_that_exists_already_can_still_be_differentiated():
    model, inputs, targets = build("twice")
    loss = F.cross_entropy(model(inputs), targets)
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    PerSampleGradients(model, F.cross_entropy)(inputs, targets)
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_frozen_parameters_and_those_not_asked_for_are_left_out():
    model, inputs, targets = build("small_conv")
    model[0].requires_grad_(False)
    _, sums, squares = one_by_one(model, inputs, targets)
    found = PerSampleGradients(model, F.cross_entropy, ["9.bias", "3.weight", "0.weight"])(inputs, targets)
    assert list(found.sums) == list(found.squares) == ["9.bias", "3.weight"]
    for name in found.sums:
        torch.testing.assert_close(found.sums[name], sums[name])
        torch.testing.assert_close(found.squares[name], squares[name])
    assert not model[0].weight.requires_grad


def test_parameters_may_be_frozen_and_unfrozen_between_chunks():
    model, inputs, targets = build("small_conv")
    gradients = PerSampleGradients(model, F.cross_entropy)
    _, sums, squares = one_by_one(model, inputs, targets)
    for frozen in ([0], [3, 9], [], [0, 3, 4]):
        for i, layer in enumerate(model):
            layer.requires_grad_(i not in frozen)
        found = gradients(inputs, targets)
        expected = [name for name in sums if int(name.partition(".")[0]) not in frozen]
        assert list(found.sums) == list(found.squares) == expected
        for name in expected:
            torch.testing.assert_close(found.sums[name], sums[name])
            torch.testing.assert_close(found.squares[name], squares[name])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        gradients(inputs, targets)


def test_parameters_that_the_loss_does_not_depend_on_have_sums_of_zero():
    model, inputs, targets = build("outside")
    found = PerSampleGradients(model, F.cross_entropy, ["unused.weight", "unused.bias"])(inputs, targets)
    assert all(float(values.abs().max()) == 0 for by_name in found[1:] for values in by_name.values())
    torch.testing.assert_close(found.losses, one_by_one(model, inputs, targets)[0])


def test_a_model_that_changes_its_way_is_refused():
    model, inputs, targets = build("small_conv")
    gradients = PerSampleGradients(model, F.cross_entropy)
    gradients(inputs, targets)
    model[4] = nn.Identity()
    with pytest.raises(RuntimeError, match=r"4\.weight, 4\.bias are not called once"):
        gradients(inputs, targets)


def test_bad_arguments_are_refused():
    model, inputs, targets = build("twice")
    with pytest.raises(ValueError, match=r"the model has no parameter shared\.scale"):
        PerSampleGradients(model, F.cross_entropy, ["shared.scale"])
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        PerSampleGradients(model.requires_grad_(False), F.cross_entropy)
    gradients = PerSampleGradients(model.requires_grad_(True), F.cross_entropy)
    with pytest.raises(ValueError, match="not 6 for 7"):
        gradients(inputs, targets[1:])
    with pytest.raises(ValueError, match="not 0 for 0"):
        gradients(inputs[:0], targets[:0])
    with pytest.raises(ValueError, match=r"must be a scalar, not of shape \(1,\)"):
        PerSampleGradients(model, lambda o, t: F.cross_entropy(o, t, reduction="none"))(inputs, targets)
