"""A study: which methods are compared on which data, described without opening any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from shiftproof.base.choices import Averaging, Kind, Precision, Search, SplitRule, Tuning
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Value
from shiftproof.base.method import Method
from shiftproof.studies.field_info import (
    ALL,
    FIGURES,
    RUNS,
    STUDIES,
    TRACES,
    One,
    Term,
    described,
    with_attributes,
)

# What trains is imported in functions: the command line reads the fields without it.
if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Variant:
    """One way of running a method: what it changes against the study.

    Attributes:
        name: how tables call it; empty for the only one.
        times: multiplies the steps.
        fixed: hyperparameters that it fixes, by "axis.name"; only methods that have them all are run this way.
        published: the published table that its rows stand beside; None for the study's.
    """

    name: str
    times: int = 1
    fixed: Mapping[str, Value] = field(default_factory=dict)
    published: str | None = None

    def __str__(self) -> str:
        return self.name


@with_attributes
@dataclass(frozen=True)
class Study:
    """A grid of runs. Every method gets the same targets, trials and number of settings.

    Raises:
        FieldError: a field is unknown, out of its range or contradicts another, before anything is opened or trained.
    """

    name: str = described("comparison", "what the study is called", "study", ("study",), metavar="TEXT")
    published: str | None = described(
        None,
        "published table that its results stand beside",
        "study",
        ("study",),
        none="no table",
        metavar="TABLE",
    )
    datasets: tuple[str, ...] = described(
        ("rotated_digits",),
        "data sets, by name; with several, each takes the targets that are its own",
        "data",
        ALL,
        options=("--dataset",),
        term=Term("dataset", "the images and their domains", always=True),
    )
    data_dir: Path | None = described(
        None,
        "folder that holds the data sets",
        "data",
        ALL,
        none="embedded ones, which need none",
        metavar="DIR",
    )
    algorithms: tuple[str, ...] = described(
        ("erm",),
        "algorithms, which say what is minimised",
        "methods",
        STUDIES,
        one=One("--algorithm", ("train", *FIGURES), "algorithm, which says what is minimised"),
    )
    optimizers: tuple[str, ...] = described(
        ("sgd", "adam", "sam", "genie"),
        "optimizers, which take the steps",
        "methods",
        (*STUDIES, *TRACES, "figure sensitivity"),
        one=One("--optimizer", ("train", "figure agreement"), "optimizer, which takes the steps"),
    )
    annealers: tuple[str, ...] = described(
        ("none",),
        "annealers, which act around every step: none, gga or gga_l",
        "methods",
        STUDIES,
        one=One("--annealer", ("train", *FIGURES), "annealer, which acts around every step: none, gga or gga_l"),
    )
    variants: tuple[Variant, ...] = described(
        (Variant(""),),
        "ways of running every method; an option names those of the study's file",
        "methods",
        ("study",),
        none="one, which changes nothing",
    )
    baseline: str | None = described(
        None,
        "method that differences are taken from, as tables print it: 'erm + sgd'",
        "methods",
        STUDIES,
        none="the first",
        metavar="METHOD",
    )
    targets: tuple[str, ...] | None = described(
        None,
        "domains that are left out one by one, and A+B together",
        "protocol",
        STUDIES,
        none="each in turn",
        metavar="DOMAIN",
        one=One("--target", ("train", *FIGURES, "bench data"), "domains that are left out together", joins=True),
    )
    selection: tuple[str, ...] = described(
        ("training_domain", "oracle", "last"),
        "rules that choose steps and settings, the table's first: training_domain, leave_one_domain_out, oracle, last",
        "protocol",
        STUDIES,
        metavar="RULE",
    )
    protocol: str = described(
        "shiftproof",
        "dialect of the benchmark protocol: shiftproof, domainbed, domainbed-head or swad",
        "protocol",
        RUNS,
        term=Term("protocol", "the rules of splitting, training and scoring", always=True),
    )
    trials: int = described(
        3,
        "number of trials, each with its own split, start and batches",
        "protocol",
        (*STUDIES, "figure sensitivity"),
        metavar="N",
        term=Term(
            "trials",
            "times that everything was repeated, each with its own split of the images, start and batches",
            always=True,
        ),
    )
    hparam_trials: int = described(
        1,
        "number of settings that every method chooses from by validation; the first is its defaults",
        "protocol",
        STUDIES,
        metavar="N",
        term=Term("settings per method", "hyperparameter settings that every method chose from", always=True),
    )
    search: Search = described(
        "short",
        "defaults and ranges that settings are drawn from: short, for a few hundred steps, or protocol, DomainBed's",
        "protocol",
        RUNS,
        term=Term(
            "search",
            "the distributions that settings are drawn from; setting 0 is a method's defaults",
            always=True,
        ),
    )
    steps: int | None = described(
        None,
        "updates of the weights in a run",
        "training",
        RUNS,
        none="the protocol's number",
        metavar="N",
        term=Term("steps", "updates of the weights in a run", always=True),
    )
    checkpoint_freq: int | None = described(
        None,
        "steps between evaluations",
        "training",
        RUNS,
        none="the protocol's number",
        metavar="N",
        term=Term("steps between evaluations", "how often a run is scored, and a step can be selected", always=True),
    )
    model: str | None = described(
        None,
        "network to train",
        "model",
        ALL,
        none="a small one on small images; photographs need one named",
        term=Term("model", "the network", always=True),
    )
    precision: Precision = described(
        "float32",
        "precision of the forward passes: float32 or bf16",
        "training",
        (*RUNS, "bench data"),
        term=Term("precision", "of the forward passes", always=True),
    )
    device: str = described(
        "cpu",
        "device that trains: cpu, cuda, cuda:1, ...; a cluster may have one that this machine lacks",
        "training",
        ALL,
        metavar="DEVICE",
        term=Term("device", "where the runs were trained", always=True),
    )
    tune: Tuning = described(
        "per_target",
        "how settings are chosen: per_target and trial, or shared, one for each method and data set",
        "protocol",
        STUDIES,
        term=Term(
            "tuning",
            "what a setting was chosen for; where this is not given, for every target and trial",
            texts={"shared": "one setting for all targets and trials"},
        ),
    )
    single_source: bool = described(
        False,
        "train on one domain, with all others as targets, every domain in turn",
        "protocol",
        STUDIES,
        term=Term(
            "sources",
            "what a run was trained on; where this is not given, on all domains but the target",
            texts={True: "one domain"},
        ),
    )
    kind: Kind | None = described(
        None,
        "kind of the images in a folder of your own: photographs or small_images; size and augmentation go by it",
        "data",
        ALL,
        none="what a look at the files says",
        term=Term("kind", "of a folder's images: photographs are cropped, flipped and changed in colour in training"),
    )
    image_size: int | None = described(
        None,
        "side of the images in pixels",
        "data",
        ALL,
        none="the model's for photographs, else their own",
        metavar="PIXELS",
        term=Term("image size", "side of the images, in pixels"),
    )
    weights: Path | None = described(
        None,
        "file of weights to start from, safetensors or torch; learning rates depend on whether there is one",
        "model",
        ALL,
        none="a random start",
        metavar="FILE",
        term=Term("weights", "the file of weights that training started from"),
    )
    normalisation: str | None = described(
        None,
        "normalisation of the images that the weights were trained with: imagenet, half or MEAN,STD",
        "model",
        (*RUNS, "bench data"),
        none="the file's, else the model's",
        metavar="MEAN,STD",
        term=Term(
            "normalisation",
            "mean and standard deviation of pixels from 0 to 1 that the weights were trained with; where this is not "
            "given, those that go with the model's name",
        ),
    )
    split: SplitRule = described(
        "random",
        "how images are held out: random, as in DomainBed, or grouped, with drawings of one photograph on one side",
        "data",
        RUNS,
        term=Term("split", "how the held-out images of a domain are chosen"),
    )
    compile: bool = described(
        False,
        "compile the featurizer with torch.compile: the same to rounding, faster on a GPU",
        "training",
        ALL,
        term=Term(
            "compiled",
            "what was turned into code of its own, which computes the same to rounding",
            texts={True: "the featurizer, by torch.compile"},
        ),
    )
    accumulate: int = described(
        1,
        "number of parts that a batch is split into for its gradient",
        "training",
        RUNS,
        metavar="N",
        term=Term("accumulate", "parts that a batch is split into for its gradient"),
    )
    clip_norm: float | None = described(
        None,
        "largest norm of the gradient",
        "training",
        RUNS,
        none="no clipping",
        metavar="X",
        term=Term("clip norm", "largest norm of the gradient"),
    )
    averaging: Averaging = described(
        "none",
        "average of the weights over the steps: none, swad or ema",
        "training",
        (*STUDIES, "train", "figure sensitivity"),
        term=Term("averaging", "of the weights over the steps; the averaged weights are scored"),
    )
    fixed: dict[str, Value] = described(
        {},
        "hyperparameters fixed by hand for all methods, which leave the search, as in optimizer.lr=0.03",
        "methods",
        RUNS,
        none="none",
        options=("--set",),
        metavar="AXIS.NAME=VALUE",
        term=Term("fixed", "hyperparameters fixed by hand, the same for all methods"),
    )

    def __post_init__(self) -> None:
        from shiftproof.studies.checks import check_study

        check_study(self)

    def device_here(self) -> torch.device:
        """Return the device, to train on this machine.

        Raises:
            FieldError: this machine does not have it.
        """
        from shiftproof.training import check_device

        try:
            return check_device(self.device)
        except ValueError as error:
            raise FieldError("device", str(error)) from error

    @property
    def combinations(self) -> list[Method]:
        """Every algorithm with every annealer and optimizer, in no variant."""
        return [
            Method(algorithm, optimizer, annealer)
            for algorithm in self.algorithms
            for annealer in self.annealers
            for optimizer in self.optimizers
        ]

    @property
    def methods(self) -> list[Method]:
        """The rows of the table: every method in every variant that it has the hyperparameters of."""
        from shiftproof.protocol import hyperparameters

        result = []
        for method in self.combinations:
            names = hyperparameters(*method[:3]).keys()
            result += [method._replace(variant=v.name) for v in self.variants if v.fixed.keys() <= names]
        return result

    @property
    def baseline_method(self) -> Method:
        """The method that differences are taken from."""
        return next(method for method in self.methods if self.baseline in (None, str(method)))

    def only(self, method: Method) -> Study:
        """Return the study of one of its methods alone; what is fixed for others is left out."""
        from shiftproof.protocol import hyperparameters

        known = hyperparameters(*method[:3])
        return replace(
            self,
            algorithms=(method.algorithm,),
            optimizers=(method.optimizer,),
            annealers=(method.annealer,),
            variants=(self.variant(method),),
            fixed={name: value for name, value in self.fixed.items() if name in known},
            baseline=None,
        )

    def variant(self, method: Method) -> Variant:
        """Return the variant of a row."""
        return next(variant for variant in self.variants if variant.name == method.variant)


@cache
def field_types() -> Mapping[str, Any]:
    """Return the types of the fields of a study, by name."""
    return get_type_hints(Study)
