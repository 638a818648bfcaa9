"""Hugging Face's Trainer beside the loop by hand, on a BERT of one small layer."""

import copy
import gc
from types import SimpleNamespace

import pytest
import torch

from clients.plain import MULTI_PASS, OPTIMIZERS, assert_same_state, assert_trained_alike, train
from shiftproof.optim import GENIE

EXAMPLES, BATCH = 16, 4


@pytest.fixture(scope="module")
def hf(client, run_guide):
    transformers = client("transformers")
    guide = run_guide("Hugging Face Trainer")  # its Trainer for multi-pass optimizers is what is tested here
    gc.freeze()  # each training collects garbage, which among all that was imported takes longer than the training
    return SimpleNamespace(
        package=transformers, Trainer=transformers.Trainer, ClosureTrainer=guide["ClosureTrainer"], guide=guide
    )


def bert(hf, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    config = hf.package.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, initializer_range=0.5, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    model = hf.package.BertForSequenceClassification(config)
    model.accepts_loss_kwargs = False  # see test_the_trainer_sums_the_losses_of_models_that_take_kwargs
    return model


def examples():
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(20, (EXAMPLES, 6), generator=draw)
    return [{"input_ids": row, "labels": row[0] % 2} for row in words]


def batches():
    rows = examples()
    chunks = [rows[i : i + BATCH] for i in range(0, EXAMPLES, BATCH)]
    return [{name: torch.stack([row[name] for row in chunk]) for name in chunk[0]} for chunk in chunks]


def fit(hf, name, model, folder, resume=None, trainer=None, **options):
    """Train with the optimizer in the Trainer's own two groups: with weight decay and without."""
    arguments = hf.package.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=BATCH,
        **{"save_strategy": "no", "logging_steps": 1, "warmup_steps": 1, "weight_decay": 0.1, **options},
    )  # fmt: skip
    cls = trainer or (hf.ClosureTrainer if name in MULTI_PASS else hf.Trainer)
    build = OPTIMIZERS[name]
    trained = cls(model, arguments, train_dataset=examples(), optimizer_cls_and_kwargs=(build.func, build.keywords))
    trained.train(resume_from_checkpoint=resume)
    return trained


def groups(trainer, model):
    """Return a model's parameters as the Trainer groups them."""
    decayed = trainer.get_decay_parameter_names(model)
    return [
        {"params": [p for name, p in model.named_parameters() if (name in decayed) == decays], "weight_decay": decay}
        for decays, decay in ((True, trainer.args.weight_decay), (False, 0.0))
    ]


every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
@pytest.mark.parametrize(
    ("accumulated", "clip", "bf16"),
    [(1, 0.0, False), (2, 0.5, False), (2, 0.5, True)],
    ids=["plain", "clipped", "bf16"],
)
def test_trainer_takes_the_steps_of_the_loop_by_hand(hf, tmp_path, name, accumulated, clip, bf16):
    start = bert(hf)
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    trainer = fit(
        hf, name, model, tmp_path, gradient_accumulation_steps=accumulated, max_grad_norm=clip, bf16=bf16,
        num_train_epochs=2, train_sampling_strategy="sequential",
    )  # fmt: skip
    optimizer = OPTIMIZERS[name](groups(trainer, expected))
    updates = [batches()[i : i + accumulated] for i in range(0, EXAMPLES // BATCH, accumulated)] * 2
    schedule = hf.package.get_linear_schedule_with_warmup(optimizer, 1, len(updates))

    def loss_of(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(**batch).loss

    losses = train(expected, optimizer, updates, loss_of, clip=clip or None, scheduler=schedule)
    assert_trained_alike(model, expected, start)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx(losses, rel=1e-6)
    for entry in logged if clip else ():
        if name in MULTI_PASS:  # the closure has clipped it already
            assert entry["grad_norm"] == pytest.approx(clip, rel=1e-4)
        else:
            assert entry["grad_norm"] > clip
    assert trainer.state.global_step == len(updates)


@every_optimizer
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(hf, tmp_path, name):
    start = bert(hf, dropout=0.3)
    whole = fit(
        hf, name, copy.deepcopy(start), tmp_path, num_train_epochs=2, gradient_accumulation_steps=2,
        save_strategy="steps", save_steps=3,
    )  # fmt: skip
    resumed = fit(
        hf, name, bert(hf, dropout=0.3, seed=1), tmp_path, num_train_epochs=2, gradient_accumulation_steps=2,
        resume=tmp_path / "checkpoint-3",
    )  # fmt: skip
    assert whole.state.global_step == resumed.state.global_step == 4
    assert_trained_alike(resumed.model, whole.model, start)
    assert_same_state(resumed.optimizer, whole.optimizer)


@pytest.mark.parametrize("name", MULTI_PASS)
@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_the_trainer_itself_gives_no_closure(hf, tmp_path, name, warmup_steps):
    """With warm-up the first step has a learning rate of zero, which must not hide that it does nothing."""
    model = bert(hf)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="so it needs a closure"):
        fit(hf, name, model, tmp_path, trainer=hf.Trainer, warmup_steps=warmup_steps)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["paper", "sam"])
def test_the_trainer_sums_the_losses_of_models_that_take_kwargs(hf, tmp_path, name):
    """A fact about the Trainer: the guide says what to do."""
    start = bert(hf)
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    del model.accepts_loss_kwargs
    trainer = fit(
        hf, name, model, tmp_path, num_train_epochs=1, gradient_accumulation_steps=2, max_grad_norm=0.0, warmup_steps=0,
        lr_scheduler_type="constant", train_sampling_strategy="sequential",
    )  # fmt: skip
    updates = [batches()[:2], batches()[2:]]
    train(expected, OPTIMIZERS[name](groups(trainer, expected)), updates, lambda model, batch: 2 * model(**batch).loss)
    assert_trained_alike(model, expected, start)


def test_the_guide_trains_with_genie_and_with_sam_around_it(hf):
    trainer = hf.guide["trainer"]
    assert trainer.state.global_step == 4
    assert type(trainer.optimizer.optimizer.base) is GENIE
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.01, 0.0]
