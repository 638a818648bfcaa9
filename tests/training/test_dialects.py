import pytest
import torch
from safetensors.torch import save_file

from shiftproof.base.registry import UnknownNameError
from shiftproof.data import Domain, DomainDataset
from shiftproof.models import build_network, weights_fingerprint
from shiftproof.training import PROTOCOLS, train
from shiftproof.training.build import build_steps

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dialect", "dataset", "kind", "steps", "freq"),
    [
        ("shiftproof", "PACS", "photographs", 300, 60),
        ("shiftproof", "DomainNet", "photographs", 300, 60),
        ("shiftproof", "rotated_digits", "small_images", 300, 60),
        ("domainbed", "PACS", "photographs", 5001, 300),
        ("domainbed", "DomainNet", "photographs", 5001, 1000),
        ("domainbed", "ColoredMNIST", "small_images", 5001, 100),
        ("domainbed-head", "VLCS", "photographs", 5001, 300),
        ("domainbed-head", "DomainNet", "photographs", 5001, 1000),
        ("domainbed-head", "RotatedMNIST", "small_images", 5001, 100),
        ("swad", "OfficeHome", "photographs", 5001, 200),
        ("swad", "DomainNet", "photographs", 15001, 500),
        ("swad", "RotatedMNIST", "small_images", 5001, 100),
    ],
)
def test_lengths_are_those_of_the_reference(dialect, dataset, kind, steps, freq):
    protocol = PROTOCOLS[dialect]
    assert protocol.steps(dataset, kind, pretrained=True) == steps
    assert protocol.checkpoint_freq(dataset, kind, steps) == freq


def test_photographs_from_scratch_take_ten_times_the_steps_of_our_own_and_no_more_of_the_references():
    steps = {name: PROTOCOLS[name].steps("PACS", "photographs", pretrained=False) for name in PROTOCOLS}
    assert steps == {"shiftproof": 3000, "domainbed": 5001, "domainbed-head": 5001, "swad": 5001}
    assert PROTOCOLS["shiftproof"].steps("folder", "small_images", pretrained=False) == 300


def test_our_own_frequency_is_a_fifth_and_at_least_one():
    frequencies = [PROTOCOLS["shiftproof"].checkpoint_freq("PACS", True, steps) for steps in (1, 4, 12, 1000)]
    assert frequencies == [1, 1, 2, 200]


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [  # updates from 1, of 5001 with an evaluation every 2000
        ("shiftproof", [2000, 4000, 5001]),
        ("domainbed", [1, 2001, 4001]),
        ("domainbed-head", [1, 2001, 4001, 5001]),
        ("swad", [1, 2001, 4001]),
    ],
)
def test_which_updates_are_evaluated(dialect, expected):
    protocol = PROTOCOLS[dialect]
    assert [step for step in range(1, 5002) if protocol.evaluated(step, 5001, 2000)] == expected
    assert protocol.last_evaluated(5001, 2000) == expected[-1]


@pytest.mark.parametrize("dialect", list(PROTOCOLS))
def test_the_last_evaluation_and_their_number_are_foretold(dialect):
    protocol = PROTOCOLS[dialect]
    for steps in range(1, 30):
        for freq in range(1, 9):
            trained = protocol.rounded(steps, freq)
            evaluated = [step for step in range(1, trained + 1) if protocol.evaluated(step, trained, freq)]
            assert evaluated[-1] == protocol.last_evaluated(trained, freq)
            assert len(evaluated) == protocol.evaluations(trained, freq)
            if dialect == "swad":
                assert evaluated[-1] == trained
                assert steps - freq < trained <= steps
            else:
                assert trained == steps


def test_swad_keeps_its_published_lengths():
    protocol = PROTOCOLS["swad"]
    assert protocol.rounded(5001, 200) == protocol.rounded(5001, 50) == 5001
    assert protocol.rounded(15001, 500) == 15001
    assert protocol.rounded(5000, 300) == 4801


def test_the_table_of_dialects():
    def column(name):
        return [getattr(PROTOCOLS[dialect], name) for dialect in PROTOCOLS]

    assert list(PROTOCOLS) == ["shiftproof", "domainbed", "domainbed-head", "swad"]
    assert column("freeze_batch_norm") == [True, True, False, True]
    assert column("zero_classifier") == [True, False, False, False]
    assert column("augment_validation") == [False, True, True, False]
    assert column("oracle") == ["last", "last", "last", "best"]
    assert column("highest_setting_wins_ties") == [False, True, True, True]
    assert column("draws") == ["per_name", "in_order", "per_name", "in_order"]
    assert column("small_models") == [{}, *[{28: "mnist_cnn", 32: "wide_resnet_16_2"}] * 3]


@pytest.mark.parametrize(
    ("dialect", "steps", "whole"),
    [
        ("shiftproof", [4, 8, 10], [10]),
        ("domainbed", [1, 5, 9], [9]),
        ("domainbed-head", [1, 5, 9, 10], [10]),
        ("swad", [1, 5, 9], [1, 5, 9]),  # its oracle may report any of them
    ],
)
def test_a_run_is_evaluated_where_and_as_its_dialect_says(dialect, steps, whole, digits, make_spec, tmp_path):
    length = PROTOCOLS[dialect].rounded(10, 4)
    result = train(make_spec(steps=length, protocol=dialect, lr=1e-3), digits, tmp_path, device=CPU)
    assert [record["step"] for record in result["metrics"]] == steps
    with_in = [record["step"] for record in result["metrics"] if "in" in record["domains"]["30"]]
    best = max(result["metrics"], key=lambda record: _validation(record))["step"]
    assert with_in == sorted({*whole, best})
    assert result["steps"] == result["passes"] == length


def _validation(record):
    return sum(parts["out"]["accuracy"] for name, parts in record["domains"].items() if name != "30")


def test_targets_are_scored_at_every_evaluation_where_asked(digits, make_spec, tmp_path):
    spec = make_spec(targets=("30", "45"), score_targets=True)
    asked = train(spec, digits, tmp_path / "a", device=CPU)
    plain = train(make_spec(targets=("30", "45")), digits, tmp_path / "b", device=CPU)
    for record, other in zip(asked["metrics"], plain["metrics"], strict=True):
        for name, parts in record["domains"].items():
            assert list(parts) == (["in", "out"] if name in ("30", "45") else ["out"])
            assert all(parts[part] == score for part, score in other["domains"][name].items())
    assert asked["weights_sha256"] == plain["weights_sha256"]


def test_a_network_starts_as_its_dialect_says(digits, make_spec, tmp_path):
    random = build_network("test_resnet", digits.input_shape, 10, dropout=0.0, seed=3)
    save_file(random.featurizer.state_dict(), tmp_path / "w.safetensors")
    for dialect, protocol in ((name, PROTOCOLS[name]) for name in PROTOCOLS):
        fingerprint = weights_fingerprint(tmp_path / "w.safetensors")
        spec = make_spec(model="test_resnet", weights=fingerprint, protocol=dialect)
        network = build_steps(spec, digits, CPU, tmp_path / "w.safetensors").algorithm.network
        assert network.freeze_batch_norm == protocol.freeze_batch_norm
        assert bool(network.classifier.weight.count_nonzero()) != protocol.zero_classifier


def test_augmented_validation_differs_from_evaluation_to_evaluation(digits, make_spec, tmp_path):
    """At lr 0 the weights stay: the losses of the sources differ by their images alone, the target's do not."""
    colours = tuple(
        Domain(d.name, d.inputs[:60].repeat(3, axis=1), d.targets[:60]) for d in digits.domains[:3]
    )  # as photographs
    data = DomainDataset("photographs", colours, digits.classes, "photographs", "x")
    for protocol, augmented in (("domainbed", True), ("swad", False)):
        spec = make_spec(lr=0.0, data_fingerprint="x", protocol=protocol)
        result = train(spec, data, tmp_path / protocol, device=CPU)
        losses = {
            name: {record["domains"][name]["out"]["loss"] for record in result["metrics"]} for name in data.domain_names
        }
        assert {name: len(values) for name, values in losses.items()} == {
            "0": 3 if augmented else 1,
            "15": 3 if augmented else 1,
            "30": 1,
        }


def test_an_unknown_dialect_is_refused(digits, make_spec, tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown protocol 'domainbet'\. Did you mean domainbed"):
        train(make_spec(protocol="domainbet"), digits, tmp_path, device=CPU)
