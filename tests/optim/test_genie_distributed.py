"""GENIE in several processes: replicas, shards and checkpoints against one process.

The processes are those of `distributed_worker`, started once for all tests; here is what must hold of their findings.
"""

import os

import pytest
import torch

from processes import run_processes

from . import distributed_worker as worker

pytestmark = [
    pytest.mark.xdist_group("distributed_worker"),  # one start serves all
    pytest.mark.skipif(
        not (hasattr(os, "fork") and torch.distributed.is_gloo_available()),
        reason="needs processes that fork, and gloo",
    ),
]
TWO_AND_THREE = pytest.mark.parametrize("world", [2, 3])


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What the processes of each world found, by (world, rank)."""
    folder = tmp_path_factory.mktemp("worlds")
    output = run_processes(worker.__file__, folder)
    found = {}
    for world in worker.WORLDS:
        for rank in range(world):
            path = folder / f"{world} {rank}.pt"
            found[world, rank] = torch.load(path) if path.exists() else {"error": f"left nothing:\n{output}"}
    return found


def found_by_all(findings, world, check):
    """What each process of a world found; fails with what they say went wrong."""
    everyone = [findings[world, rank] for rank in range(world)]
    if not all(check in found for found in everyone):
        pytest.fail("\n".join(f"rank {rank}: {found.get('error')}" for rank, found in enumerate(everyone)))
    return [found[check] for found in everyone]


def assert_same_run(run, reference, tolerance):
    """Same elements moved in every step, by the same amounts; a tolerance is in units of each type's precision."""
    for values, expected in zip(run["parameters"], reference["parameters"], strict=True):
        moved, expected_moved = values[1:] != values[:-1], expected[1:] != expected[:-1]
        assert torch.equal(moved, expected_moved)
        assert 0 < moved.sum() < moved.numel()
        assert_near(values, expected, tolerance)
    for values, expected in zip(run["state"], reference["state"], strict=True):
        assert set(values) == set(expected)
        for name, value in values.items():
            assert value.dtype == expected[name].dtype
            assert_near(value, expected[name], tolerance)
    assert any(run["noisy"])


def assert_near(values, expected, tolerance):
    assert values.dtype == expected.dtype
    if not tolerance:
        assert torch.equal(values, expected)
        return
    difference = (values - expected).abs().double().max()
    assert difference <= tolerance * torch.finfo(expected.dtype).eps * expected.abs().double().max()


def tolerance_of(name):
    """The released form sums up a tensor's noise scale in another order; nothing else rounds differently."""
    return 4 if name.startswith("released") else 0


# ---------------------------------------------------------------------------------------------------- replicas


@TWO_AND_THREE
@pytest.mark.parametrize("name", worker.RUNS)
def test_replicas_stay_identical(findings, world, name):
    """However their torch generators and their data differ."""
    replicas = [found[name] for found in found_by_all(findings, world, "data_parallel")]
    assert len({replica["next draw"] for replica in replicas}) == world
    digests = [replica["digests"] for replica in replicas]
    assert len(set(digests[0])) == worker.STEPS
    assert all(each == digests[0] for each in digests)
    assert all(replica["noisy"] > 0.5 and not replica["moved generator"] for replica in replicas)


# ------------------------------------------------------------------------------------------------------ shards


@TWO_AND_THREE
@pytest.mark.parametrize("name", [*worker.RUNS, *worker.BFLOAT16])
def test_fully_sharded_is_one_process(findings, world, name):
    everyone = [found[name] for found in found_by_all(findings, world, "fully_sharded")]
    sizes = [found["sizes"] for found in everyone]
    assert sizes[0] != sizes[-1]
    assert 0 in sizes[-1]
    assert_same_run(everyone[0]["several"], everyone[0]["one"], tolerance_of(name))


@TWO_AND_THREE
@pytest.mark.parametrize("name", worker.RUNS)
def test_fully_sharded_training_is_training_in_one_process(findings, world, name):
    """Gradients are each run's own, and carry roundings on: of the noise's scale, and of the mean of 3 gradients."""
    found = found_by_all(findings, world, "fully_sharded")[0][name]
    exact = world == 2 and not tolerance_of(name)
    assert_same_run(found["several"], found["trained in one"], 0 if exact else 40)


@pytest.mark.parametrize(
    ("world", "name"),
    [*((world, name) for world in (2, 3) for name in worker.RUNS), *((2, name) for name in worker.FORLOOP)],
)
def test_placements_are_one_process(findings, world, name):
    """Shards along every dimension, replicas, both on planes of processes, and gradients placed otherwise."""
    everyone = [found[name] for found in found_by_all(findings, world, "placed")]
    assert any(size == 0 for found in everyone for size in found["sizes"])
    assert_same_run(everyone[0]["several"], everyone[0]["one"], tolerance_of(name))


@TWO_AND_THREE
@pytest.mark.parametrize("name", worker.RUNS)
def test_tensor_parallel_is_one_process(findings, world, name):
    found = found_by_all(findings, world, "tensor_parallel")[0][name]
    assert found["placements"] == ["(Shard(dim=0),)", "(Shard(dim=0),)", "(Shard(dim=1),)", "(Replicate(),)"]
    assert_same_run(found["several"], found["one"], tolerance_of(name))


@pytest.mark.parametrize("kind", ["over tensor parallel", "hybrid", "in two dimensions"])
@pytest.mark.parametrize("name", worker.RUNS)
def test_two_dimensional_meshes_are_one_process(findings, name, kind):
    everyone = [found[f"{name}, {kind}"] for found in found_by_all(findings, 4, "sharded_twice")]
    cut_twice = [placements for placements in everyone[0]["placements"] if placements.count("Shard") == 2]
    assert len(cut_twice) == {"over tensor parallel": 3, "hybrid": 0, "in two dimensions": 4}[kind]
    # The kernel may take one part of a parameter and foreach another, and they round differently.
    mixed = kind == "in two dimensions" and "default" in name
    assert_same_run(everyone[0]["several"], everyone[0]["one"], 4 if mixed else tolerance_of(name))


def test_interleaved_parts_are_refused(findings):
    assert all("interleaved" in message for message in found_by_all(findings, 2, "refused"))


@TWO_AND_THREE
def test_statistics_are_none_where_a_process_holds_nothing(findings, world):
    everyone = found_by_all(findings, world, "fully_sharded")
    for name in worker.RUNS:
        for found in everyone:
            sizes, first = found[name]["sizes"], len(found[name]["sizes"]) // 2
            held = [sum(sizes[:first]) > 0, sum(sizes[first:]) > 0]
            assert [noisy is not None for noisy in found[name]["noisy here"]] == held
    assert any(None in found["paper, foreach"]["noisy here"] for found in everyone) == (world == 3)


# ----------------------------------------------------------------------------------------------- communication


@TWO_AND_THREE
@pytest.mark.parametrize("kind", ["sharded", "replicated", "plain"])
@pytest.mark.parametrize("name", worker.RUNS)
def test_a_step_is_one_packed_all_reduce(findings, world, name, kind):
    """For the 6 parameters of both groups, 2 sums each; none where nothing is to be summed."""
    needed = kind == "sharded" and name.startswith("released")
    for found in found_by_all(findings, world, "communication"):
        for shapes, collectives in found[f"{name}, {kind}"]:
            assert shapes == ([(6, 2)] if needed else [])
            assert collectives == len(shapes)


@pytest.mark.parametrize("name", worker.RUNS)
def test_a_step_is_one_all_reduce_per_mesh_dimension(findings, name):
    """Two weights and a bias are cut along both dimensions, the other bias along one."""
    for found in found_by_all(findings, 4, "communication"):
        for shapes, collectives in found[f"{name}, sharded twice"]:
            assert shapes == ([(4, 2), (3, 2)] if name.startswith("released") else [])
            assert collectives == len(shapes)


# ------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("name", worker.CHECKPOINTED)
def test_a_run_goes_on_in_another_world(findings, world, name):
    """From the distributed checkpoint of world 2, which goes on itself, as does one process that never stopped."""
    saved, resumed = (found_by_all(findings, each, "checkpoints")[0][name] for each in (2, world))
    whole_run = findings[1, 0]["checkpoints"][name]["undisturbed"]
    undisturbed = {**whole_run, "parameters": [values[worker.SAVED_AT :] for values in whole_run["parameters"]]}
    assert [state["step"] for state in resumed["state"]] == [worker.STEPS] * 6
    for reference in (saved, undisturbed):
        assert_same_run(resumed, reference, tolerance_of(name))


@pytest.mark.parametrize("name", worker.CHECKPOINTED)
def test_a_run_goes_on_from_a_full_state_dict(findings, name):
    for found in found_by_all(findings, 2, "full_state_dicts"):
        assert_same_run(found[name]["loaded"], found[name]["undisturbed"], 0)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("form", worker.FORMS)
def test_state_is_there_before_the_first_step(findings, world, form):
    """torch makes the state of an optimizer that has none by a step with zero gradients and lr 0.

    It counts as step 1, and leaves weight decay in the moments, so that the run is another one; init_state does not.
    """
    names = {"exp_avg", "exp_avg_sq", "step"}
    for found in found_by_all(findings, world, "primed"):
        fresh, asked, created = (found[f"{form}, {kind}"] for kind in ("fresh", "asked", "created"))
        assert fresh["steps"] == []
        assert asked["steps"] == [1] * 6
        assert created["steps"] == [0] * 6
        assert not any(value.any() for entries in created["entries"].values() for value in entries.values())
        for one in (asked, created):
            assert len(one["entries"]) == 6
            assert all(set(entries) == names for entries in one["entries"].values())
            for values, expected in zip(one["parameters"], fresh["parameters"], strict=True):
                assert torch.equal(values[0], expected[0])
        assert_same_run(created, fresh, 0)
        assert [state["step"] for state in created["state"]] == [3] * 6
        assert not all(map(torch.equal, asked["parameters"], fresh["parameters"]))
