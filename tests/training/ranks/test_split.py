"""Several devices give what one gives: tests of two gloo processes, which parallel_worker.py starts."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d, DropPath
from torch import nn

from processes import is_running, run_processes, wait_until
from shiftproof.algorithms import ALGORITHMS, ERM
from shiftproof.cli import main
from shiftproof.data import DATASETS
from shiftproof.models import Network, Normalisation
from shiftproof.training import read_result
from shiftproof.training.combinations import check_combination
from shiftproof.training.inputs import Inputs
from shiftproof.training.ranks.launch import check_devices, launch
from shiftproof.training.ranks.split import Ranks, check_featurizer, split_over_ranks, synchronised
from shiftproof.training.saved_model import load
from training.ranks.parallel_worker import PARALLEL, algorithm_cases, option_cases, spec_of

WORKER = Path(__file__).with_name("parallel_worker.py")
ROUNDING = 1e-4  # of the way that the weights went; those that divide by small differences are the largest
BFLOAT16 = 0.05
RUNS = pytest.mark.xdist_group("parallel_worker runs")  # one start of the processes serves all tests of a group


@pytest.fixture(scope="session")
def worked(tmp_path_factory):
    """A function that runs a part of the worker, once, and returns its folder."""
    done = {}

    def work(part):
        if part not in done:
            folder = tmp_path_factory.mktemp(part)
            printed = run_processes(WORKER, part, folder)
            done[part] = folder, printed
        return done[part]

    return work


def _check_steps(worked, part, name):
    folder, printed = worked(part)
    assert (folder / "differences.json").exists(), printed
    found = json.loads((folder / "differences.json").read_text())[name]
    allowed = BFLOAT16 if "bf16" in name else ROUNDING
    assert found["state"] < allowed
    assert found["losses"] < allowed
    assert found["logits"] < allowed


@pytest.mark.xdist_group("parallel_worker algorithms")
@pytest.mark.parametrize("name", algorithm_cases())
def test_steps_of_an_algorithm_on_two_devices_are_those_on_one(worked, name):
    _check_steps(worked, "algorithms", name)


@pytest.mark.slow
@pytest.mark.xdist_group("parallel_worker options")
@pytest.mark.parametrize("name", option_cases())
def test_steps_of_an_optimizer_on_two_devices_are_those_on_one(worked, name):
    _check_steps(worked, "options", name)


def _accuracies(folder):
    return [
        score["accuracy"]
        for record in read_result(folder)["metrics"]
        for parts in record["domains"].values()
        for score in parts.values()
    ]


@RUNS
@pytest.mark.parametrize("other", ["two", "parts"])
def test_a_run_on_two_devices_or_in_parts_on_several_is_that_on_one(worked, other):
    folder, printed = worked("runs")
    assert (folder / "parts" / "result.json").exists(), printed
    one, result = read_result(folder / "one"), read_result(folder / other)
    assert [record["step"] for record in result["metrics"]] == [4, 8, 12]
    for expected, record in zip(one["metrics"], result["metrics"], strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert _accuracies(folder / other) == pytest.approx(_accuracies(folder / "one"), abs=0.04)  # two images in 60
    assert result["passes"] == one["passes"] == 12
    assert result["devices"] == {"two": 2, "parts": 1}[other]
    model, expected = load(folder / other).state_dict(), load(folder / "one").state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(model[name], value, rtol=1e-3, atol=1e-4)


@RUNS
def test_a_run_on_two_devices_continues_on_two_bit_for_bit(worked):
    folder, printed = worked("runs")
    assert (folder / "parts" / "result.json").exists(), printed
    one, other = ({**read_result(folder / name), "seconds": None} for name in ("two", "continued"))
    assert one == other


@RUNS
def test_checkpoints_of_sharded_and_whole_networks_are_alike(worked):
    folder, printed = worked("runs")
    assert (folder / "fsdp.pt").exists(), printed
    whole, sharded = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("ddp", "fsdp"))
    shapes = [
        {
            **{name: value.shape for name, value in state["algorithm"].items()},
            **{
                (number, name): torch.as_tensor(value).shape
                for number, entries in state["optimizers"]["all"]["state"].items()
                for name, value in entries.items()
            },
        }
        for state in (whole, sharded)
    ]
    assert shapes[0] == shapes[1]
    assert {type(value) for value in sharded["algorithm"].values()} == {torch.Tensor}
    assert not any("module" in name for name in whole["algorithm"])


def test_a_rank_prepares_its_own_rows_as_one_device_does():
    digits, spec, device = DATASETS["rotated_digits"].open(None, None), spec_of(), torch.device("cpu")
    normalisation = Normalisation((0.5,), (0.5,))
    whole = Inputs(digits, spec, normalisation, device).batches(3)
    for rank in range(4):
        part = Inputs(digits, spec, normalisation, device, Ranks(rank, 4)).batches(3)
        for (images, labels), (expected, all_labels) in zip(part, whole, strict=True):
            assert torch.equal(images[rank::4], expected[rank::4])
            images[rank::4] = math.nan
            assert images.isnan().all()
            assert torch.equal(labels, all_labels)


@pytest.mark.parametrize(
    ("strategy", "changes", "message"),
    [
        (
            "ddp",
            {"algorithm": "arm"},
            "arm trains on one device, not 3: its context is a mean over all images of a domain",
        ),
        ("ddp", {"annealer": "gga_l"}, "gga_l trains on one device, not 3: it compares the gradients of whole domains"),
        ("ddp", {"optimizer": "adahessian"}, "adahessian trains on one device, not 3: it differentiates the gradient"),
        ("fsdp", {"algorithm": "rsc"}, "rsc reads the weights of its heads, which fsdp shards: use ddp"),
        (
            "ddp",
            {"algorithm": "mixup"},
            "mixup with one source domain trains on one device, not 3: it mixes the images",
        ),
        ("ddp", {}, "a batch of 8 images per domain cannot be split evenly into 3 devices"),
        ("ddp", {"accumulate": 2}, "a batch of 8 images per domain cannot be split evenly into 2 parts on 3 devices"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_reason(strategy, changes, message):
    with pytest.raises(ValueError, match=message):
        check_combination(spec_of(**changes), 1 if "mixup" in changes.values() else 3, Ranks(0, 3, strategy))


def test_every_other_algorithm_says_why_it_trains_on_one_device():
    refused = {"arm", "mldg", "and_mask", "sand_mask", "iga", "gsnr_dropout", "miro", "mixstyle", "probe", "lp_ft"}
    refused |= {"lisa", "vrgd", "cutmix", "orgmixup", "mixstyle_domains", "adrmx"}
    unaided = {name for name in ALGORITHMS if not ALGORITHMS[name].needs_class_vectors}
    assert unaided - set(PARALLEL) == refused


@pytest.mark.parametrize(
    ("device", "devices", "strategy", "message"),
    [
        ("cpu", 2, "fdsp", "unknown strategy 'fdsp'; the strategies are ddp, fsdp"),
        ("cpu", 0, "ddp", "devices must be at least 1, not 0"),
        ("cuda:1", 2, "ddp", "several devices must be of the kind cpu or cuda, not cuda:1"),
        ("cuda", 1000, "ddp", "1000 GPUs were requested, but there are"),
    ],
)
def test_devices_that_are_not_there_are_refused(device, devices, strategy, message):
    with pytest.raises(ValueError, match=message):
        check_devices(device, devices, strategy)


def test_torchrun_says_how_many_devices_there_are(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_devices("cpu", 1, "ddp")
    with pytest.raises(ValueError, match="torchrun has started the processes: leave out the number of devices"):
        check_devices("cpu", 2, "ddp")
    with pytest.raises(ValueError, match="of the kind cpu or cuda, not cuda:1"):
        check_devices("cuda:1", 1, "ddp")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.BatchNorm2d(3), "the batch norm 0 of the model follows the batches, of which CPUs would each see a part"),
        (nn.Dropout(0.1), "0 of the model drops at random"),
        (DropPath(0.1), "0 of the model drops at random"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), "0 of the model drops at random"),
    ],
)
def test_a_featurizer_that_parts_would_change_is_refused(module, message):
    network = Network(nn.Sequential(module), 4, 2, Normalisation((0.5,), (0.5,)))
    with pytest.raises(ValueError, match=message):
        split_over_ranks(ERM(network, 3), Ranks(0, 2))
    if isinstance(module, nn.BatchNorm2d):
        module.eval()
    module.__dict__.update(p=0.0, dropout=0.0, drop_prob=0.0)
    check_featurizer(network.featurizer, torch.device("cpu"))


def test_batch_norms_are_synchronised_with_their_activations_and_frozen_ones_left():
    norm = BatchNormAct2d(4)
    featurizer = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert synchronised(featurizer.eval()) is featurizer
    expected = featurizer(images)
    assert (expected == 0).any()  # of the activation
    converted = synchronised(featurizer.train())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted.eval()(images), expected)


def _fail(ranks, device):
    if ranks.rank == 1:
        raise OSError("No space left:\nall of it")
    torch.distributed.barrier()


def _end(ranks, device):
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (_fail, "process 1 of 2 failed: OSError: No space left:\nall of it"),
        (_end, "process 1 of 2 was killed: process 1 terminated with signal SIGKILL"),
    ],
)
def test_the_error_of_a_process_is_told(work, message):
    with pytest.raises(ChildProcessError, match=message):
        launch(work, "cpu", 2, "ddp")


def _wait_for_the_other(folder, ranks, device):
    (folder / str(os.getpid())).touch()
    torch.distributed.recv(torch.zeros(1), src=1 - ranks.rank)  # which never sends


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_processes_that_wait_for_each_other_end_with_the_one_that_started_them(tmp_path):
    code = f"""
import sys
sys.path[:0] = {sys.path}
from functools import partial
from pathlib import Path
from shiftproof.training.ranks.launch import launch
from training.ranks.test_split import _wait_for_the_other
if __name__ == "__main__":
    launch(partial(_wait_for_the_other, Path({str(tmp_path)!r})), "cpu", 2, "ddp")
"""
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        ranks = wait_until(lambda: len(found := list(tmp_path.iterdir())) == 2 and found, parent)
        parent.kill()
    wait_until(lambda: not any(is_running(rank.name) for rank in ranks))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_a_process_that_another_program_started_ends_with_that(tmp_path):
    """As those of torchrun do, which does not start them by multiprocessing."""
    code = f"""
import sys
sys.path[:0] = {sys.path}
import os, signal
from pathlib import Path
from shiftproof.base.processes import end_with_parent
end_with_parent()
(Path({str(tmp_path)!r}) / str(os.getpid())).touch()
signal.pause()
"""
    starter = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen([sys.executable, "-c", starter, code]) as parent:
        [started] = wait_until(lambda: list(tmp_path.iterdir()), parent)
        assert is_running(started.name)
        parent.kill()
    wait_until(lambda: not is_running(started.name))


@pytest.mark.slow
def test_the_command_line_trains_on_several_devices_and_under_torchrun(tmp_path, capfd):
    def train(folder, *options):
        return ["train", "--target", "0", "--steps", "8", "--output", str(tmp_path / folder), *options]

    assert main(train("one", "--optimizer", "adam")) == 0
    printed = capfd.readouterr().out
    assert main(train("two", "--optimizer", "adam", "--devices", "2", "--strategy", "fsdp")) == 0
    assert capfd.readouterr().out == printed.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "shiftproof"]
    done = subprocess.run([*torchrun, *train("torchrun", "--optimizer", "adam")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed.replace(str(tmp_path / "one"), str(tmp_path / "torchrun"))
    assert read_result(tmp_path / "torchrun")["devices"] == 2


def test_the_command_line_refuses_what_cannot_be_split_before_processes_start(tmp_path, capsys):
    command = ["train", "--target", "0", "--steps", "8", "--batch-size", "16", "--output", str(tmp_path / "run")]
    assert main([*command, "--devices", "3"]) == 1
    expected = (
        "shiftproof: error: --batch-size: a batch of 16 images per domain cannot be split evenly into 3 devices\n"
    )
    assert capsys.readouterr().err == expected
