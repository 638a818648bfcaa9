"""The compiled CPU kernel: every build is the for-loop; it is built once, and done without where it cannot be."""

import copy
import os
import stat
import subprocess
import sys

import pytest
import torch

from processes import HANG
from shiftproof.base.sharding import Shard, element_indices
from shiftproof.optim import GENIE, GENIEAdamW
from shiftproof.optim.genie import build, fused_cpu
from shiftproof.optim.genie.eager import begin_forloop
from shiftproof.optim.genie.rule import FORMS, Options, Row
from shiftproof.optim.genie.step import Flags, take_step

every_form = pytest.mark.parametrize("form", FORMS)
every_rule = pytest.mark.parametrize("form", [*FORMS, "adamw"])
SEED = 2**63 + 0x0123456789ABCDEF  # its top bit is set: the operators take it as a signed number
SHAPES = [(), (1,), (63,), (64,), (65,), (1000,), (7, 9, 11), (40000,)]


@pytest.fixture(scope="module", autouse=True)
def kernel():
    error = build.kernel_error()
    if error:
        assert not os.environ.get("CI"), error
        pytest.skip(error)


def _build(params, form, **options):
    if form == "adamw":
        return GENIEAdamW(params, seed=SEED, **{"dropout": 0.4, **options})
    return GENIE(params, form=form, seed=SEED, **options)


def _trained(form, std, steps=6, shapes=SHAPES, layout=torch.contiguous_format, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    params = [p.to(memory_format=layout) if p.ndim == 4 else p for p in params]
    optimizer = _build(params, form, lr=0.1, **options)
    for _ in range(steps):
        for p in params:
            p.grad = ((torch.randn(p.shape, generator=generator) + 0.3) * std).to(dtype)
        optimizer.step()
    return optimizer, params


def _assert_close(left, right, tolerance):
    for one, other in zip(left, right, strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max()


# ------------------------------------------------------------------------------------------- numbers


@every_rule
@pytest.mark.parametrize("std", [0.01, 3.0])
@pytest.mark.parametrize("instruction_set", range(3), ids=fused_cpu.INSTRUCTION_SETS)
def test_every_build_is_the_forloop_and_draws_its_masks(form, std, instruction_set):
    if instruction_set > fused_cpu.instruction_set():
        pytest.skip("this processor has no such instructions")
    with fused_cpu.limited_instructions(instruction_set):
        assert fused_cpu.description() == f"fused ({fused_cpu.INSTRUCTION_SETS[instruction_set]})"
        _, fused = _trained(form, std, fused=True)
    _, forloop = _trained(form, std, foreach=False)
    _, exact = _trained(form, std, foreach=False, dtype=torch.float64)
    for reference, one, other in zip(exact, fused, forloop, strict=True):
        scale = reference.abs().max()
        errors = [float((p - reference).abs().max() / scale) for p in (one, other)]
        # Variances are small differences of large numbers, so few elements are far less exact than the others.
        assert errors[0] <= 3 * errors[1] + 1e-6
        assert (one - reference).abs().median() <= 1e-6 * scale
    # In one step from zero an element moves if it is kept and has a gradient, so movement is the mask.
    moved = []
    for options in ({"fused": True}, {"foreach": False}):
        p = torch.zeros(100_003)
        p.grad = torch.ones_like(p)
        with fused_cpu.limited_instructions(instruction_set):
            _build([p], form, dropout=0.37, **options).step()
        moved.append(p != 0)
    assert torch.equal(*moved)
    assert abs(float(moved[0].float().mean()) - 0.63) < 0.01


@every_rule
@pytest.mark.parametrize("shape", [(17, 5, 3, 3), (2, 64, 1, 7), (3, 1, 2, 2)])
@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16])
def test_channels_last_draws_in_logical_order(form, shape, moment_dtype):
    _, reference = _trained(form, 3.0, shapes=[shape], foreach=False, moment_dtype=moment_dtype)
    optimizer, fused = _trained(
        form, 3.0, shapes=[shape], layout=torch.channels_last, fused=True, moment_dtype=moment_dtype
    )
    assert fused[0].is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[fused[0]]["exp_avg"].stride() == fused[0].stride()
    _assert_close(reference, fused, 1e-4 if moment_dtype else 3e-6)


@every_rule
@pytest.mark.parametrize(
    ("whole", "offset", "local"),
    [
        ((1000,), (37,), (200,)),
        ((9, 50), (4, 0), (3, 50)),
        ((9, 50), (0, 13), (9, 20)),
        ((4, 5, 30), (0, 2, 0), (4, 2, 30)),
        ((4, 5, 30), (1, 0, 3), (1, 5, 7)),
    ],
)
def test_a_shard_is_stepped_as_that_part_of_the_whole(form, whole, offset, local):
    generator = torch.Generator().manual_seed(0)
    options = _options(form, dropout=0.4, seed=SEED)
    box = tuple(slice(first, first + size) for first, size in zip(offset, local, strict=True))

    def tensors():
        return [torch.randn(whole, generator=generator) for _ in range(2)] + [
            torch.randn(whole, generator=generator) * 0.5,
            torch.rand(whole, generator=generator) * 4 + 1,
        ]

    full = tensors()
    part = [t[box].clone() for t in full]
    rows = [Row(*full, 5, 3, None), Row(*part, 5, 3, Shard(whole, offset, ()))]
    whole_step, part_step = begin_forloop([rows[0]], options), fused_cpu.begin([rows[1]], options)
    spreads = None if whole_step.sums is None else whole_step.sums[:, 0] / whole_step.sums[:, 1]
    whole_step.finish(spreads)
    part_step.finish(spreads)
    assert (full[0][box] - part[0]).abs().max() < 1e-6
    assert torch.equal(full[0][box] == part[0], (full[0][box] - part[0]).abs() == 0)
    assert torch.equal(element_indices(local, rows[1].shard, part[0].device)[:1], torch.tensor([_flat(offset, whole)]))


def _options(form, dropout, seed):
    return Options(
        lr=0.1,
        betas=(0.9, 0.99) if form == "adamw" else (0.9, 0.9),
        eps=1e-8,
        dropout=dropout,
        noise=0.0 if form == "adamw" else 1.0,
        precondition=True,
        weight_decay=0.1 if form == "adamw" else 0.0,
        form=form,
        seed=seed,
        maximize=False,
    )


def _flat(offset, whole):
    index = 0
    for first, size in zip(offset, whole, strict=True):
        index = index * size + first
    return index


@every_form
def test_the_number_of_threads_changes_nothing(form):
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_trained(form, 3.0, shapes=[(100_000,), (33, 70)], fused=True)[1])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_form
def test_bfloat16_parameters_are_rounded_once(form):
    _, fused = _trained(form, 3.0, dtype=torch.bfloat16, fused=True)
    _, reference = _trained(form, 3.0, dtype=torch.bfloat16, foreach=False)
    for one, other in zip(reference, fused, strict=True):
        differing = one != other
        assert differing.float().mean() < 0.01  # where float32 arithmetic differs in its last bit at a tie
        assert (one - other).abs().max() <= 2**-7 * one.abs().max()


@every_form
@pytest.mark.parametrize("std", [1e4, 1e6])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_little_certainty_is_not_lost(form, std, noise):
    """1 - (1 - certainty) would leave nothing of it, and the spread of the noise 0 / 0."""
    for shapes in ([(1,)], [(200,)]):
        [exact] = _trained(form, std, shapes=shapes, foreach=False, dtype=torch.float64, noise=noise)[1]
        [fused] = _trained(form, std, shapes=shapes, fused=True, noise=noise)[1]
        [forloop] = _trained(form, std, shapes=shapes, foreach=False, noise=noise)[1]
        scale = exact.abs().max()
        assert (fused - exact).abs().max() / scale <= 3 * (forloop - exact).abs().max() / scale + 1e-5


@every_form
def test_averages_without_memory_have_no_variance(form):
    for beta in (0.0, 1e-17):
        _, exact = _trained(form, 1.0, foreach=False, beta=beta)
        _, fused = _trained(form, 1.0, fused=True, beta=beta)
        _assert_close(exact, fused, 3e-6)


def test_autograd_sees_that_weights_have_changed():
    w = torch.ones(3, requires_grad=True)
    x = torch.ones(3, requires_grad=True)
    loss = (w * w * x).sum()
    w.grad = torch.ones(3)
    GENIE([w], fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_state_of_another_memory_order_is_brought_to_the_parameters():
    p = torch.randn(4, 3, 3, 3)
    plain = GENIE([p.clone()], seed=0)
    last = GENIE([p.to(memory_format=torch.channels_last)], fused=True, seed=0)
    [one], [other] = plain.param_groups[0]["params"], last.param_groups[0]["params"]
    one.grad = torch.randn(4, 3, 3, 3)
    plain.step()
    other.data.copy_(one)
    saved = copy.deepcopy(plain.state_dict())  # torch shares what it loads
    last.load_state_dict({**saved, "param_groups": last.state_dict()["param_groups"]})
    assert last.state[other]["exp_avg"].stride() == other.stride()
    one.grad = torch.randn(4, 3, 3, 3)
    other.grad = one.grad.to(memory_format=torch.channels_last)
    plain.step()
    last.step()
    _assert_close([one], [other], 3e-6)


def test_what_is_not_for_the_kernel_takes_foreach():
    params = [torch.randn(4, 6).t(), torch.randn(5, dtype=torch.float64), torch.randn(5)]
    for p in params:
        p.grad = torch.ones_like(p)
    GENIE(params).step()
    for p, words in zip(params, ("neither in logical order nor channels last", "float64"), strict=False):
        with pytest.raises(RuntimeError, match=rf"fused=True, but .*{words}"):
            GENIE([p], fused=True).step()
    text = repr(GENIE(params))
    assert "foreach: the parameter or a moving average lies neither in logical order" in text
    assert "fused (" in text


def test_an_all_reduce_for_rows_of_several_implementations_is_one():
    """Sums of rows of different implementations meet again, in order."""
    generator = torch.Generator().manual_seed(0)
    mixed = [torch.randn(70, generator=generator), torch.randn(6, 4, generator=generator).t()]
    plain = [p.clone() for p in mixed]
    for params, variant in ((mixed, Flags()), (plain, Flags(foreach=False))):
        rows = [
            Row(p, torch.full_like(p, 2.0), torch.zeros_like(p), torch.full_like(p, 4.0), 3, i, None)
            for i, p in enumerate(params)
        ]
        take_step([(rows, _options("released", dropout=0.0, seed=0), variant)], [[]])
    _assert_close(plain, mixed, 3e-6)


def test_the_library_does_not_flush_denormal_numbers():
    assert float(torch.tensor(1e-39) * 1) != 0


# ------------------------------------------------------------------------------------------- memory

_PEAK = """
import resource, torch
from shiftproof.optim import GENIE
p = torch.zeros(25_000_000)
p.grad = torch.ones_like(p)
optimizer = GENIE([p], form={form!r}, fused=True)
optimizer.step()
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for _ in range(3):
    p.grad.mul_(-3)
    optimizer.step()
state = sum(t.numel() * t.element_size() for t in optimizer.state[p].values())
print((peak() - before) / 1e8, state / p.numel())
"""


@every_form
def test_a_step_takes_no_memory_beside_the_state(form):
    """In units of the model's 100 MB: flags of groups, no temporaries."""
    done = subprocess.run([sys.executable, "-c", _PEAK.format(form=form)], capture_output=True, text=True, check=True)
    extra, state = map(float, done.stdout.split())
    assert extra < 0.05
    assert state == pytest.approx(8, abs=1e-5)


# ------------------------------------------------------------------------------------------- building

_STEP = """
import torch
from shiftproof.optim import GENIE
p = torch.ones(100)
p.grad = torch.ones(100)
optimizer = GENIE([p], lr=1.0)
optimizer.step()
optimizer.step()
print(repr(optimizer).rpartition("group 0: ")[2], float(p.sum()))
"""


def _run(script, cache, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "SHIFTPROOF_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _compiler(folder, body):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\necho \"$@\" >> '{folder}/calls'\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def not_prebuilt():
    if build.PREBUILT.exists():
        pytest.skip("the kernel came with the package")


@pytest.mark.usefixtures("not_prebuilt")
def test_concurrent_processes_compile_once(tmp_path):
    """The compiler is a stand-in that counts its calls and hands out the kernel that is there already."""
    take = 'for last; do :; done; sleep 1; case "$last" in *.so) cp "$KERNEL" "$last";; *) : > "$last";; esac'
    compiler = _compiler(tmp_path, take)
    processes = [_run(_STEP, tmp_path / "cache", CXX=compiler, KERNEL=str(build._cached())) for _ in range(3)]
    outputs = [process.communicate(timeout=HANG) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert all(out.startswith("fused (") for out, _ in outputs)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len([call for call in calls if "-shared" in call]) == 1
    assert len([call for call in calls if "genie.cpp" in call]) in (1, 3)
    assert not any("fast-math" in call for call in calls)
    assert sum("compiling" in err for _, err in outputs) == 1
    assert [path.suffix for path in sorted((tmp_path / "cache").iterdir())] == [".lock", ".so"]


@pytest.mark.usefixtures("not_prebuilt")
def test_without_a_compiler_everything_works_and_repr_says_why(tmp_path):
    out, said = _run(_STEP, tmp_path, PATH="", CXX="").communicate(timeout=HANG)
    assert out.startswith("foreach: ")
    assert "no C++ compiler" in out
    assert [line for line in said.splitlines() if line.startswith("shiftproof:")] == [
        "shiftproof: GENIE steps in plain PyTorch, which is slower: "
        "there is no C++ compiler (c++, g++, clang++ or $CXX)"
    ]
    reference, _ = _run(_STEP, build._cached().parent).communicate(timeout=HANG)
    assert out.split()[-1] == reference.split()[-1]


@pytest.mark.usefixtures("not_prebuilt")
def test_a_compiler_that_fails_is_reported_and_not_tried_again(tmp_path):
    compiler = _compiler(tmp_path, "echo 'x.cpp:1: error: no such thing' >&2; exit 1")
    for _ in range(2):
        out, _ = _run(_STEP, tmp_path / "cache", CXX=compiler).communicate(timeout=HANG)
        assert out.startswith("foreach: ")
        assert "x.cpp:1: error: no such thing" in out
    assert len((tmp_path / "calls").read_text().splitlines()) <= 4
    [failed] = (tmp_path / "cache").glob("*.failed")
    assert str(failed) in out


@pytest.mark.usefixtures("not_prebuilt")
def test_a_compiler_that_comes_later_is_found(tmp_path):
    _run(_STEP, tmp_path / "cache", PATH="", CXX="").communicate(timeout=HANG)
    assert not list((tmp_path / "cache").glob("*.failed"))


@pytest.mark.usefixtures("not_prebuilt")
def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    out, _ = _run(_STEP, tmp_path / "file" / "cache").communicate(timeout=HANG)
    assert "cannot be kept" in out
    assert "SHIFTPROOF_CACHE" in out
