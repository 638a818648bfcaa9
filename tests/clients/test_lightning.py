"""Lightning's Trainer beside the loop by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clients.plain import MULTI_PASS, OPTIMIZERS, SINGLE_PASS, assert_same_state, assert_trained_alike, train
from optim.test_multipass import CASES
from shiftproof.optim import SAM

DRAW = torch.Generator().manual_seed(1)
DATA = torch.utils.data.TensorDataset(torch.randn(24, 6, generator=DRAW), torch.randint(3, (24,), generator=DRAW))
LOADER = torch.utils.data.DataLoader(DATA, batch_size=4)
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(scope="module")
def lightning(client):
    package = client("lightning.pytorch")

    class Automatic(package.LightningModule):
        def __init__(self, network, optimizer, scheduler=None, loss_of=loss_of):
            super().__init__()
            self.network, self.optimizer, self.scheduler, self.loss_of = network, optimizer, scheduler, loss_of
            self.losses = []

        def training_step(self, batch, index):
            loss = self.loss_of(self.network, batch)
            self.log("step", loss)
            self.log("epoch", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self):
            optimizer = self.optimizer(self.parameters())
            if self.scheduler is None:
                return optimizer
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"},
            }

        def optimizer_step(self, epoch, index, optimizer, closure):
            self.losses.append(float(optimizer.step(closure=closure)))

    class Manual(Automatic):
        """Accumulates over the halves of a batch, in a closure or before the step."""

        automatic_optimization = False

        def __init__(self, network, optimizer, *, closes):
            super().__init__(network, optimizer)
            self.closes = closes

        def training_step(self, batch, index):
            optimizer = self.optimizers()

            def closure():
                optimizer.zero_grad()
                for half in zip(batch[0].chunk(2), batch[1].chunk(2), strict=True):
                    self.manual_backward(loss_of(self.network, half) / 2)

            if self.closes:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()

    return SimpleNamespace(Automatic=Automatic, Manual=Manual, Trainer=package.Trainer)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def fit(lightning, module, resume=None, loader=LOADER, **options):
    trainer = lightning.Trainer(**{**QUIET, "max_epochs": 1, **options})
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return trainer


def one_cycle(optimizer, steps=6):
    """A schedule of the learning rate alone: GENIE has no momentum for it to cycle."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps, cycle_momentum=False)


@every_optimizer
@pytest.mark.parametrize(("precision", "clip"), [("32-true", 0.3), ("bf16-mixed", None), ("bf16-mixed", 0.3)])
def test_automatic_optimization_takes_the_steps_of_the_loop_by_hand(lightning, name, precision, clip):
    start = network()
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    module = lightning.Automatic(model, OPTIMIZERS[name], one_cycle)
    trainer = fit(lightning, module, gradient_clip_val=clip, precision=precision)

    def by_hand(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return loss_of(model, batch)

    optimizer = OPTIMIZERS[name](expected.parameters())
    updates = [[batch] for batch in LOADER]
    losses = train(expected, optimizer, updates, by_hand, clip=clip, scheduler=one_cycle(optimizer))
    assert_trained_alike(model, expected, start)
    assert module.losses == losses
    assert trainer.global_step == len(updates)  # not the number of passes


@pytest.mark.parametrize(
    ("name", "closes"), [*((name, True) for name in OPTIMIZERS), *((name, False) for name in SINGLE_PASS)]
)
def test_manual_optimization_takes_the_steps_of_the_loop_by_hand(lightning, name, closes):
    start = network()
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    fit(lightning, lightning.Manual(model, OPTIMIZERS[name], closes=closes))
    updates = [list(zip(inputs.chunk(2), targets.chunk(2), strict=True)) for inputs, targets in LOADER]
    train(expected, OPTIMIZERS[name](expected.parameters()), updates, loss_of)
    assert_trained_alike(model, expected, start)


@pytest.mark.parametrize("name", MULTI_PASS)
def test_manual_optimization_without_a_closure_says_what_is_missing(lightning, name):
    """Lightning then passes a closure that does nothing, with which each pass would find the same gradients."""
    model = network()
    with pytest.raises(ValueError, match="so it needs a closure"):
        fit(lightning, lightning.Manual(model, OPTIMIZERS[name], closes=False))
    assert all(map(torch.equal, model.parameters(), network().parameters()))


@pytest.mark.parametrize("name", SINGLE_PASS)
def test_accumulation_steps_on_the_mean_of_its_batches(lightning, name):
    start = network()
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    fit(lightning, lightning.Automatic(model, OPTIMIZERS[name]), accumulate_grad_batches=2, gradient_clip_val=0.3)
    batches = list(LOADER)
    updates = [batches[i : i + 2] for i in range(0, len(batches), 2)]
    train(expected, OPTIMIZERS[name](expected.parameters()), updates, loss_of, clip=0.3)
    assert_trained_alike(model, expected, start)


@pytest.mark.parametrize(("cls", "transcription", "options"), CASES)
def test_all_passes_of_an_accumulated_step_are_of_all_its_batches(lightning, cls, transcription, options):
    """Lightning repeats the last batch of a step only; the gradients of those before stand at the step's weights."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()  # the transcriptions' shapes
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    data = torch.utils.data.TensorDataset(torch.randn(20, 3).double(), torch.randn(20, 2).double())
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    batches, clip = list(loader), 0.9

    def optimizer(params):
        return cls(params, torch.optim.SGD, **options, lr=0.1, momentum=0.9)

    def squared(model, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    def gradient(w, batch):
        at = w.clone().requires_grad_()
        loss = F.mse_loss(F.linear(batch[0], at[:6].reshape(2, 3), at[6:]), batch[1]) / 2
        return torch.autograd.grad(loss, at)[0]

    module = lightning.Automatic(model, optimizer, loss_of=squared)
    fit(lightning, module, loader=loader, accumulate_grad_batches=2, gradient_clip_val=clip)
    momentum = torch.zeros_like(w)
    norms = []
    for *before, last in (batches[:2], batches[2:4], batches[4:]):
        standing = sum((gradient(w, batch) for batch in before), torch.zeros_like(w))

        def clipped(at, standing=standing, last=last):
            whole = standing + gradient(at, last)
            norms.append(whole.norm())
            return whole * (clip / (whole.norm() + 1e-6)).clamp(max=1)

        momentum = 0.9 * momentum + transcription(clipped, w, **options)
        w = w - 0.1 * momentum
    assert max(norms) > clip > min(norms)
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in model.parameters()]), w, rtol=1e-9, atol=1e-12)


@every_optimizer
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(lightning, tmp_path, name):
    start = network()  # without dropout, whose generator Lightning does not save

    def module(model):
        return lightning.Automatic(model, OPTIMIZERS[name], lambda optimizer: one_cycle(optimizer, steps=12))

    whole = fit(lightning, module(copy.deepcopy(start)), max_epochs=2)
    half = fit(lightning, module(copy.deepcopy(start)))
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(lightning, module(network(seed=1)), resume=tmp_path / "half.ckpt", max_epochs=2)
    assert_trained_alike(resumed.model.network, whole.model.network, start)
    assert_same_state(resumed.optimizers[0], whole.optimizers[0])


def test_lightning_logs_the_last_pass_and_the_mean_of_all(lightning):
    """A fact about Lightning, which logs what each call of the closure logs: the guide says what to do."""
    start = network()
    evaluated = []

    def optimizer(params):
        return SAM(params, torch.optim.SGD, rho=0.1, lr=0.1)

    module = lightning.Automatic(copy.deepcopy(start), optimizer)
    trainer = fit(lightning, module)
    expected = copy.deepcopy(start)

    def noted(model, batch):
        loss = loss_of(model, batch)
        evaluated.append(loss.item())
        return loss

    at_the_weights = train(expected, optimizer(expected.parameters()), [[batch] for batch in LOADER], noted)
    assert module.losses == at_the_weights == evaluated[::2]
    assert trainer.callback_metrics["step"] == evaluated[-1] != at_the_weights[-1]
    assert trainer.callback_metrics["epoch"].item() == pytest.approx(sum(evaluated) / len(evaluated), rel=1e-6)


def test_schedules_that_cycle_momentum_need_an_option():
    optimizer = OPTIMIZERS["paper"](network().parameters())
    for schedule in (
        lambda **options: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6, **options),
        lambda **options: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, **options),
    ):
        with pytest.raises(ValueError, match="cycle_momentum"):
            schedule()
        schedule(cycle_momentum=False)


def test_the_guide_trains_and_logs_the_loss_at_the_weights(lightning, run_guide):
    trainer = run_guide("Lightning")["trainer"]
    assert trainer.global_step == 4
    assert 0 < trainer.callback_metrics["loss"] < 2
