"""LoRA by peft beside the same factors written by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clients.plain import MULTI_PASS, OPTIMIZERS, assert_same_state, assert_trained_alike, train

RANK, ALPHA = 2, 4
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(scope="module")
def peft(client):
    return client("peft")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def adapted(peft, dropout=0.0):
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["0", "2"], r=RANK, lora_alpha=ALPHA, lora_dropout=dropout)
    return peft.get_peft_model(network(), config)


def batches(number=4):
    draw = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 6, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(number)]


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


class Lora(nn.Module):
    """A linear layer that stays, and two factors that are trained."""

    def __init__(self, layer, down, up):
        super().__init__()
        self.weight, self.bias = (p.detach().clone() for p in (layer.weight, layer.bias))
        self.down, self.up = nn.Parameter(down.detach().clone()), nn.Parameter(up.detach().clone())

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.up) * (ALPHA / RANK)


@every_optimizer
def test_the_adapters_alone_move_as_factors_written_by_hand_do(peft, name):
    model = adapted(peft)
    frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
    factors = [p.detach().clone() for p in trained(model)]
    first, last = network()[::2]
    by_hand = nn.Sequential(Lora(first, *factors[:2]), nn.Tanh(), Lora(last, *factors[2:]))
    start = copy.deepcopy(by_hand)
    optimizer = OPTIMIZERS[name](trained(model))
    updates = [[batch] for batch in batches()]
    losses = train(model, optimizer, updates, loss_of)
    assert losses == train(by_hand, OPTIMIZERS[name](by_hand.parameters()), updates, loss_of)
    assert_trained_alike(*(nn.ParameterList(trained(net)) for net in (model, by_hand, start)))
    assert all(torch.equal(p, frozen[key]) for key, p in model.named_parameters() if not p.requires_grad)
    assert len(optimizer.state_dict()["state"]) == len(factors)


@every_optimizer
def test_a_first_step_of_one_pass_leaves_the_factors_whose_gradient_is_zero(peft, name):
    """LoRA begins with one factor zero, so that the other's gradient is: 0 / 0 in GENIE's ratios."""
    model = adapted(peft)
    before = copy.deepcopy(model.state_dict())
    train(model, OPTIMIZERS[name](trained(model)), [[batches()[0]]], loss_of)
    for key, p in model.named_parameters():
        assert p.isfinite().all()
        moves = "lora_B" in key or ("lora_A" in key and name in MULTI_PASS)  # not zero where the second pass looks
        assert torch.equal(p, before[key]) != moves


@every_optimizer
def test_a_run_goes_on_from_saved_adapters_bit_for_bit(peft, tmp_path, name):
    whole = adapted(peft, dropout=0.5)
    start = copy.deepcopy(whole)
    optimizer = OPTIMIZERS[name](trained(whole))
    train(whole, optimizer, [[batch] for batch in batches()[:2]], loss_of)
    whole.save_pretrained(tmp_path)
    torch.save({"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, tmp_path / "run.pt")
    train(whole, optimizer, [[batch] for batch in batches()[2:]], loss_of)

    resumed = peft.PeftModel.from_pretrained(network(), tmp_path, is_trainable=True)
    run = torch.load(tmp_path / "run.pt", weights_only=True)
    again = OPTIMIZERS[name](trained(resumed))
    again.load_state_dict(run["optimizer"])
    torch.set_rng_state(run["random"])
    train(resumed, again, [[batch] for batch in batches()[2:]], loss_of)
    assert_trained_alike(resumed, whole, start)
    assert_same_state(again, optimizer)


def test_the_guide_trains_and_its_adapters_load(peft, run_guide):
    names = run_guide("peft")
    adapted, again = names["adapted"], names["again"]
    torch.testing.assert_close(adapted.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert any("lora_B" in key and p.any() for key, p in again.named_parameters())
