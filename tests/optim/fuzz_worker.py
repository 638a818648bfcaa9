"""Hands GENIE states of any shape, type, device, layout and order, and looks for crashes and silently wrong steps.

Run as ``python fuzz_worker.py SEED CASES FILE``: each case is written to the file before it runs, so that a crash of
the process leaves its name there. A case must raise one of the errors that tell a user something, or take the step that
the for-loop takes from the same state, and write nothing around its tensors.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from shiftproof.optim import GENIE
from shiftproof.optim.genie.functional import genie

ERRORS = (ValueError, RuntimeError, TypeError, NotImplementedError)
GUARD = 64  # elements around a tensor that nothing may write to
DTYPES = ("float32", "bfloat16", "float16", "float64", "complex64", "int64")
LAYOUTS = ("contiguous", "channels_last", "transposed", "gaps", "expanded")
TENSORS = ("exp_avg", "exp_avg_sq", "step", "param", "grad")

sizes = st.one_of(
    st.lists(st.integers(0, 9), max_size=5),
    st.sampled_from([[16, 7], [40, 16], [3, 70, 5, 5], [64], [65], [20000], [129, 130], [2, 200, 9, 9], []]),
)
change = st.fixed_dictionaries(
    {
        "of": st.integers(0, 2),
        "tensor": st.sampled_from(TENSORS),
        "shape": st.one_of(st.none(), sizes),
        "dtype": st.one_of(st.none(), st.sampled_from(DTYPES)),
        "layout": st.sampled_from(LAYOUTS),
        "device": st.sampled_from(["cpu", "cpu", "cpu", "meta"]),
        "kind": st.sampled_from(["new", "new", "new", "sparse", "missing", "number", "nan", "negative"]),
    }
)
case = st.fixed_dictionaries(
    {
        "params": st.lists(
            st.fixed_dictionaries(
                {
                    "shape": sizes,
                    "dtype": st.sampled_from(["float32", "float32", "float32", *DTYPES[:-1]]),
                    "layout": st.sampled_from(LAYOUTS[:-1]),
                }
            ),
            min_size=1,
            max_size=3,
        ),
        "options": st.fixed_dictionaries(
            {
                "form": st.sampled_from(["paper", "released"]),
                "dropout": st.sampled_from([0.0, 0.4]),
                "noise": st.sampled_from([0.0, 1.0]),
                "weight_decay": st.sampled_from([0.0, 0.1]),
                "moment_dtype": st.sampled_from([None, "float32", "bfloat16"]),
                "maximize": st.booleans(),
            }
        ),
        "implementation": st.sampled_from([{}, {}, {}, {"foreach": True}, {"fused": True}]),
        "steps": st.integers(0, 2),
        "scale": st.sampled_from([1e-3, 1.0, 30.0]),  # of gradients: the last has noise everywhere
        "changes": st.lists(change, max_size=3),
        "order": st.permutations([0, 1, 2]),
        "load": st.booleans(),  # by load_state_dict, or behind the optimizer's back
        "functional": st.booleans(),
    }
)


class Guarded:
    """Makes tensors that lie in larger ones, and tells whether the rest was written to."""

    def __init__(self):
        self.wholes = []

    def make(self, shape, dtype, layout, device="cpu", kind="random", scale=1.0):
        dtype = getattr(torch, dtype)
        shape = tuple(shape)
        if layout == "expanded":
            return torch.ones((), dtype=dtype, device=device).expand(shape)
        numel = torch.Size(shape).numel()
        gap = 2 if layout == "gaps" else 1
        whole = torch.full((2 * GUARD + gap * numel,), 3, dtype=dtype, device=device)
        inner = whole[GUARD : GUARD + gap * numel : gap]
        if layout == "channels_last" and len(shape) == 4:
            n, c, h, w = shape
            tensor = inner.view(n, h, w, c).permute(0, 3, 1, 2)
        elif layout == "transposed" and len(shape) >= 2:
            tensor = inner.view(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
        else:
            tensor = (
                inner.view(shape)
                if gap == 1
                else inner.reshape(-1)
                .view(-1)[:numel]
                .as_strided(
                    shape, [gap * s for s in torch.empty(shape, device="meta").stride()], inner.storage_offset()
                )
            )
        if device == "cpu":
            real = torch.float64 if dtype in (torch.int64, torch.float64) else torch.float32
            values = scale * torch.randn(shape, dtype=real)
            tensor.copy_(values.abs() if kind == "positive" else values)
            self.wholes.append((whole, gap))
        return tensor

    def check(self):
        for whole, gap in self.wholes:
            outside = torch.cat([whole[:GUARD], whole[-GUARD:]])
            assert (outside == 3).all(), "written before or behind a tensor"
            if gap == 2:
                assert (whole[GUARD:-GUARD][1::2] == 3).all(), "written into the gaps of a tensor"


def changed(guarded, p, entries, spec):
    """Change a parameter's data, gradient or state as a case says."""
    old = {"param": p.data, "grad": p.grad}.get(spec["tensor"], entries.get(spec["tensor"]))
    shape = tuple(p.shape if spec["shape"] is None else spec["shape"])
    dtype = spec["dtype"] or str(getattr(old, "dtype", p.dtype)).removeprefix("torch.")
    if spec["kind"] == "sparse":
        new = torch.zeros(shape, dtype=getattr(torch, dtype)).to_sparse()
    elif spec["kind"] in ("number", "nan", "negative") and spec["tensor"] == "step":
        new = {"number": 3.0, "nan": torch.tensor(float("nan")), "negative": torch.tensor(-2.0)}[spec["kind"]]
    else:
        kind = "positive" if spec["tensor"] in ("exp_avg_sq", "step") else "random"
        new = guarded.make(shape, dtype, spec["layout"], spec["device"], kind)
    if spec["tensor"] == "param":
        if isinstance(new, torch.Tensor):
            p.data = new
    elif spec["tensor"] == "grad":
        p.grad = new if isinstance(new, torch.Tensor) else None
    elif spec["kind"] == "missing":
        entries.pop(spec["tensor"], None)
    else:
        entries[spec["tensor"]] = new


def build(spec, guarded):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(guarded.make(each["shape"], each["dtype"], each["layout"])) for each in spec["params"]]
    optimizer = GENIE(params, lr=0.01, seed=5, **spec["options"], **spec["implementation"])
    for _ in range(spec["steps"]):
        gradients(spec, params, guarded)
        optimizer.step()
    gradients(spec, params, guarded)
    return params, optimizer


def gradients(spec, params, guarded):
    for p in params:
        p.grad = guarded.make(p.shape, str(p.dtype).removeprefix("torch."), "contiguous", scale=spec["scale"])


def spoil(spec, params, optimizer, guarded):
    """Load or put in place what the case says."""
    saved = copy.deepcopy(optimizer.state_dict()) if spec["load"] else None
    order = [i for i in spec["order"] if i < len(params)]
    if saved is not None:
        saved["state"] = {i: saved["state"][j] for i, j in enumerate(order) if j in saved["state"]}
    for each in spec["changes"]:
        i = each["of"] % len(params)
        entries = optimizer.state[params[i]] if saved is None else saved["state"].setdefault(i, {})
        changed(guarded, params[i], entries, each)
    if saved is not None:
        optimizer.load_state_dict(saved)


def step(spec, params, optimizer):
    states = [optimizer.state[p] for p in params]
    if not spec["functional"] or any(
        len(state) < 3 or not isinstance(state["step"], torch.Tensor) for state in states
    ):  # which the functional leaves to the caller
        optimizer.step()
        return
    group = optimizer.param_groups[0]
    genie(
        [p.detach() for p in params],
        [p.grad for p in params],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
        list(range(len(params))),
        **{name: group[name] for name in ("lr", "beta", "dropout", "noise", "precondition", "weight_decay", "form")},
        **{name: group[name] for name in ("seed", "maximize", "foreach", "fused")},
    )


def outcome(spec, forloop):
    """Return the weights after the case, or the error."""
    guarded = Guarded()
    try:
        params, optimizer = build(spec, guarded)
        spoil(spec, params, optimizer, guarded)
        if forloop:
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = None, False
        step(spec, params, optimizer)
    except ERRORS as error:
        return error
    finally:
        guarded.check()
    return [p.detach().clone() for p in params]


def run(spec):
    found, expected = outcome(spec, forloop=False), outcome(spec, forloop=True)
    if isinstance(found, Exception):
        assert str(found), "an error without a word"
        # One implementation may refuse what the others take, if it was asked for.
        asked = spec["implementation"].get("fused")
        assert isinstance(expected, Exception) or asked, f"{found!r}, where the for-loop takes the step"
        return
    assert not isinstance(expected, Exception), f"taken, where the for-loop says {expected!r}"
    for p, q in zip(found, expected, strict=True):
        if p.device.type == "meta":
            continue
        # A moment in bfloat16 may be rounded to its other neighbour, and its third power is in the step.
        coarse = p.dtype in (torch.float16, torch.bfloat16) or spec["options"]["moment_dtype"] == "bfloat16"
        tolerance = (4e-2 if coarse else 2e-4) * max(spec["scale"], 1)
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)


def main():
    number, cases, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case)
    def every_case(spec):
        file.write_text(json.dumps(spec))
        run(spec)
        counted.append(1)

    counted = []
    torch.set_num_threads(1)
    every_case()
    print(f"{len(counted)} cases passed")


if __name__ == "__main__":
    if len(sys.argv) == 2:  # one case again
        run(json.loads(Path(sys.argv[1]).read_text()))
    else:
        main()
