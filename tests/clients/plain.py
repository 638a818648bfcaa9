"""The optimizers that the clients train with, and the loop without a client that their results are compared with."""

from functools import partial

import torch

from shiftproof.optim import GENIE, SAM, GENIEAdamW

OPTIMIZERS = {  # with seeds, as two GENIEs of one process otherwise draw different masks
    "paper": partial(GENIE, lr=0.02, seed=3),
    "released": partial(GENIE, lr=0.02, seed=3, form="released"),
    "genie_adamw": partial(GENIEAdamW, lr=0.01, weight_decay=0.0, dropout=0.4, seed=3),
    "sam": partial(SAM, base=torch.optim.Adam, rho=0.1, lr=0.01),
    "sam_genie": partial(SAM, base=GENIE, rho=0.1, lr=0.02, seed=3),
}
SINGLE_PASS, MULTI_PASS = ("paper", "released", "genie_adamw"), ("sam", "sam_genie")


def train(model, optimizer, updates, loss_of, *, clip=None, scheduler=None):
    """Train as one would by hand.

    Args:
        model: what is trained.
        optimizer: steps with a closure, whatever its number of passes.
        updates: the batches of each update; their mean loss is minimised.
        loss_of: returns the loss of a model and a batch.
        clip: bounds the norm of the gradient of each pass.
        scheduler: stepped after each update.

    Returns:
        The loss of each update, before it.
    """
    model.train()
    losses = []
    for batches in updates:

        def closure(batches=batches):
            optimizer.zero_grad()
            total = 0.0
            for batch in batches:
                loss = loss_of(model, batch) / len(batches)
                loss.backward()
                total += loss.item()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            return total

        losses.append(optimizer.step(closure))
        if scheduler is not None:
            scheduler.step()
    return losses


def assert_trained_alike(model, expected, start, **tolerances):
    """Assert that two models hold the same, bit for bit unless tolerances are given, and not what they began with."""
    before = start.state_dict()
    for name, p in expected.named_parameters():
        assert not p.requires_grad or not torch.equal(p, before[name]), f"{name} did not move"
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), **(tolerances or {"rtol": 0, "atol": 0}))


def assert_same_state(optimizer, expected):
    """Assert that two optimizers hold the same state and options, bit for bit."""
    state, expected_state = optimizer.state_dict(), expected.state_dict()
    torch.testing.assert_close(state["state"], expected_state["state"], rtol=0, atol=0)
    assert state["param_groups"] == expected_state["param_groups"]
