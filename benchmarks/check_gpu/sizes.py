"""What is measured on a GPU, and on what the checks themselves are tried without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        device: where it runs.
        judged: whether speeds say anything.
        steps: options of `shiftproof bench optimizer`, by what they step.
        pictures: how many are made per domain; the last is the target.
        side: of a picture, in pixels.
        network: options of runs and of `shiftproof bench data`: the network and its inputs.
        data: other options of the latter.
        runs: options of the runs that are made twice, by what they are.
        run: options of all these runs.
    """

    device: str
    judged: bool
    steps: Mapping[str, tuple[str, ...]]
    pictures: Mapping[str, int]
    side: int
    network: tuple[str, ...]
    data: tuple[str, ...]
    runs: Mapping[str, tuple[str, ...]]
    run: tuple[str, ...]

    @property
    def target(self) -> str:
        """The domain left out."""
        return list(self.pictures)[-1]


_FAST = ("--precision", "bf16", "--compile")

GPU = Sizes(
    device="cuda",
    judged=True,
    steps={
        "ResNet-50's tensors": ("--model", "resnet50", "--rounds", "41"),
        "10^8 elements": ("--elements", "100000000", "--rounds", "21"),
    },
    # as many as PACS has, so that evaluation has its share of the protocol's length
    pictures={"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929},
    side=227,
    network=("--model", "resnet50", "--batch-size", "32"),
    data=_FAST,
    runs={"float32": (), "bf16, compiled": _FAST},
    # a rate at which a network that starts at random does not diverge
    run=("--optimizer", "genie", "--set", "optimizer.lr=0.001", "--steps", "10", "--checkpoint-freq", "10"),
)

DRY = Sizes(
    device="cpu",
    judged=False,
    steps={"1000 elements": ("--elements", "1000", "--rounds", "1")},
    pictures={"photo": 16, "art_painting": 16, "sketch": 16},
    side=16,
    network=("--model", "small_conv", "--image-size", "16", "--batch-size", "2"),
    data=("--steps", "1"),
    runs={"float32": ()},
    # GENIE's kernel would be compiled once more, into the folder that is deleted
    run=("--optimizer", "adam", "--steps", "2", "--checkpoint-freq", "2"),
)
