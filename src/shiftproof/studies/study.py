"""A study: which methods to compare on which data and how, described without opening the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from shiftproof.base.choices import (
    Averaging,
    Cache,
    ClassWeights,
    MissingLabels,
    PictureKind,
    Precision,
    Sampling,
    Schedule,
    Search,
    SplitRule,
    Task,
    Tuning,
)
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Value
from shiftproof.base.method import Method, find_method
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

# Functions import torch and the training code themselves: the command line reads the fields without either.
if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Variant:
    """One way of running a method, as changes to the study.

    Attributes:
        name: its name in tables; empty for the only variant.
        times: factor for the number of steps.
        fixed: hyperparameters that it fixes. Only methods that have all of those such as optimizer.lr get this variant,
            and if there are any such as sgd.lr, only those that have one of them.
        published: the published table to compare its rows with; None for the study's.
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
        FieldError: a value is unknown, out of its range or contradicts another field; nothing is opened or trained yet.

    Examples:
        >>> from shiftproof.studies import Study, make_plan
        >>> study = Study(datasets=("vowels",), optimizers=("adam", "genie"), targets=("speaker00",), trials=2)
        >>> plan = make_plan(study)
        >>> len(plan.runs), plan.runs[0].label()
        (4, 'erm + adam on speaker00, trial 0, setting 0')
    """

    name: str = described("comparison", "name of the study", "study", ("study",), metavar="TEXT")
    imports: tuple[str, ...] = described(
        (),
        "module or file (mine.py) to import first, which adds methods, data sets, models, rules or trackers",
        "study",
        ALL,
        none="none",
        options=("--import",),
        metavar="PLUGIN",
        repeats=True,
    )
    published: str | None = described(
        None,
        "published table to compare the results with",
        "study",
        ("study",),
        none="no table",
        metavar="TABLE",
    )
    datasets: tuple[str, ...] = described(
        ("rotated_digits",),
        "names of the data sets; with several, each leaves out those targets that are its own domains",
        "data",
        STUDIES,
        options=("--dataset",),
        one=One("--dataset", ("train", *FIGURES, "bench data", "encode"), "name of the data set"),
        term=Term("dataset", "the images and their domains", always=True),
    )
    data_dir: Path | None = described(
        None,
        "folder that holds the data sets",
        "data",
        ALL,
        none="none; embedded data sets need no folder",
        metavar="DIR",
    )
    metadata: Path | None = described(
        None,
        "CSV or Parquet file of the data set table: a row for every case",
        "data",
        (*RUNS, "encode"),
        none="none",
        metavar="FILE",
    )
    domain: str | None = described(
        None,
        "column of the table that names the domain of a row",
        "data",
        (*RUNS, "encode"),
        none="none",
        metavar="COLUMN",
        term=Term("domain", "the column that names the domain of a row"),
    )
    labels: tuple[str, ...] = described(
        (),
        "column of the table to predict; several, of 0 and 1, for several labels of a row",
        "data",
        (*RUNS, "encode"),
        none="none",
        options=("--label",),
        metavar="COLUMN",
        term=Term("predicted", "the columns that are predicted"),
    )
    task: Task | None = described(
        None,
        "what a table's label is: classification, multilabel or regression",
        "data",
        (*RUNS, "encode"),
        none="classification; multilabel for several labels",
        metavar="TASK",
        term=Term("task", "what is predicted; if not shown, one class of several"),
    )
    features: tuple[str, ...] = described(
        (),
        "columns of the table to predict from; NAME:number and NAME:category say their type",
        "data",
        RUNS,
        none="all others, with the type of their values",
        metavar="COLUMN",
        term=Term("features", "the columns to predict from; if not shown, all others of the table"),
    )
    image: str | None = described(
        None,
        "column of the table that names picture files, to predict from in place of features",
        "data",
        (*RUNS, "encode"),
        none="none",
        metavar="COLUMN",
        term=Term("image", "the column that names picture files"),
    )
    group: str | None = described(
        None,
        "column of the table whose equal values mark rows of one thing, for --split grouped",
        "data",
        (*RUNS, "encode"),
        none="none",
        metavar="COLUMN",
        term=Term("group", "the column whose equal values mark rows of one thing"),
    )
    id: str | None = described(
        None,
        "column of the table that names each row, with no value twice; it is no feature",
        "data",
        RUNS,
        none="none; rows are named by their numbers",
        metavar="COLUMN",
    )
    missing_labels: MissingLabels = described(
        "error",
        "rows of a table without a label: error ends with the first one, drop leaves them out",
        "data",
        (*RUNS, "encode"),
        term=Term("missing labels", "rows without a label, which are left out of training and of all scores"),
    )
    algorithms: tuple[str, ...] = described(
        ("erm",),
        "algorithms, which define what is minimised (shiftproof list algorithms)",
        "methods",
        STUDIES,
        one=One(
            "--algorithm",
            ("train", *FIGURES),
            "algorithm, which defines what is minimised (shiftproof list algorithms)",
        ),
    )
    optimizers: tuple[str, ...] = described(
        ("sgd", "adam", "sam", "genie", "genie_adamw"),
        "optimizers, which take the steps (shiftproof list optimizers)",
        "methods",
        (*STUDIES, *TRACES, "figure sensitivity"),
        one=One(
            "--optimizer",
            ("train", "figure agreement"),
            "optimizer, which takes the steps (shiftproof list optimizers)",
        ),
    )
    annealers: tuple[str, ...] = described(
        ("none",),
        "annealers, which act around every step: none, gga or gga_l",
        "methods",
        STUDIES,
        one=One("--annealer", ("train", *FIGURES), "annealer, which acts around every step: none, gga or gga_l"),
    )
    averaging: tuple[Averaging, ...] = described(
        ("none",),
        "averages of the weights over the steps, each a row: none ema sma bma swad swad_released wise_ft; or dfr",
        "methods",
        STUDIES,
        one=One(
            "--averaging",
            ("train", "figure sensitivity"),
            "average of the weights over the steps: none ema sma bma swad swad_released wise_ft; or dfr",
        ),
        term=Term("averaging", "how the weights were averaged over the steps; the averaged weights are scored"),
    )
    variants: tuple[Variant, ...] = described(
        (Variant(""),),
        "ways of running every method, defined in the study's file; the option selects some by name",
        "methods",
        ("study",),
        none="one that changes nothing",
    )
    baseline: str | None = described(
        None,
        "method that the others are compared with, written as in tables: 'erm + sgd'",
        "methods",
        STUDIES,
        none="the first",
        metavar="METHOD",
    )
    targets: tuple[str, ...] | None = described(
        None,
        "domains to leave out, one at a time; A+B leaves out both together",
        "protocol",
        STUDIES,
        none="each in turn",
        metavar="DOMAIN",
        one=One("--target", ("train", *FIGURES, "bench data"), "domains that are left out together", joins=True),
    )
    selection: tuple[str, ...] = described(
        ("training_domain", "oracle", "last"),
        "selection rules, of which tables show the first: training_domain, leave_one_domain_out, oracle, last",
        "protocol",
        STUDIES,
        metavar="RULE",
    )
    metric: str | None = described(
        None,
        "measure that selects steps and settings, and that tables show (docs/reference/metrics.md)",
        "protocol",
        (*STUDIES, "train"),
        none="accuracy; average_precision of several labels, rmse of a regression",
        metavar="MEASURE",
        term=Term("metric", "the measure that selects and that tables show"),
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
        "number of trials, each with its own split, initial weights and batches",
        "protocol",
        (*STUDIES, "figure sensitivity"),
        metavar="N",
        term=Term(
            "trials",
            "number of repetitions, each with its own split of the images, initial weights and batches",
            always=True,
        ),
    )
    hparam_trials: int = described(
        1,
        "number of hyperparameter settings per method, the first its defaults; validation selects one",
        "protocol",
        STUDIES,
        metavar="N",
        term=Term("settings per method", "hyperparameter settings tried for every method", always=True),
    )
    search: Search | None = described(
        None,
        "defaults and ranges of the hyperparameters: short, for a few hundred steps, or protocol, as in DomainBed",
        "protocol",
        RUNS,
        none="short; protocol in DomainBed's dialects",
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
        (*STUDIES, "train", "figure sensitivity"),
        none="the protocol's number",
        metavar="N",
        term=Term("steps between evaluations", "how often a run is scored; scored steps can be selected", always=True),
    )
    model: str | None = described(
        None,
        "network to train (shiftproof list models)",
        "model",
        ALL,
        none="a small one for small images; photographs need a named model",
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
        "device to train on: cpu, cuda, cuda:1, ...; on a cluster, this machine need not have it",
        "training",
        ALL,
        metavar="DEVICE",
        term=Term("device", "where the runs were trained", always=True),
    )
    tune: Tuning = described(
        "per_target",
        "whether validation selects a setting for every target and trial (per_target) or for a whole data set (shared)",
        "protocol",
        STUDIES,
        term=Term(
            "tuning",
            "how settings were selected; if not shown, separately for every target and trial",
            texts={"shared": "one setting for all targets and trials"},
        ),
    )
    single_source: bool = described(
        False,
        "train on one domain at a time, with all others as targets",
        "protocol",
        STUDIES,
        term=Term(
            "sources",
            "the domains that a run was trained on; if not shown, all but the target",
            texts={True: "one domain"},
        ),
    )
    kind: PictureKind | None = described(
        None,
        "kind of the images in your own folder or table, which sets size and augmentation: photographs or small_images",
        "data",
        ALL,
        none="inferred from the files",
        term=Term("kind", "kind of the images; photographs are cropped, flipped and changed in colour in training"),
    )
    image_size: int | None = described(
        None,
        "side of the images in pixels",
        "data",
        ALL,
        none="the model's for photographs, else the images' own",
        metavar="PIXELS",
        term=Term("image size", "side of the images, in pixels"),
    )
    weights: Path | None = described(
        None,
        "file of weights to start from, or hub: the model's published ones; changes the learning rates of the search",
        "model",
        ALL,
        none="a random start",
        metavar="FILE",
        term=Term("weights", "the weights that training started from: a file, or what is published of the model"),
    )
    class_vectors: Path | None = described(
        None,
        "file of a vector of each class, as of a text encoder, that features are compared with",
        "model",
        RUNS,
        none="none; a classifier is trained",
        metavar="FILE",
        term=Term("class vectors", "given vectors of the classes, in the place of a classifier that is trained"),
    )
    normalisation: str | None = described(
        None,
        "normalisation of the images that the weights were trained with: imagenet, half or MEAN,STD",
        "model",
        ALL,
        none="the file's, else the model's",
        metavar="MEAN,STD",
        term=Term(
            "normalisation",
            "mean and standard deviation, for pixels from 0 to 1, that the weights were trained with; if not shown, "
            "those of the named model",
        ),
    )
    split: SplitRule = described(
        "random",
        "how images are held out: random, as in DomainBed, or grouped, which keeps drawings of one photograph together",
        "data",
        RUNS,
        term=Term("split", "how the held-out images of a domain are chosen"),
    )
    compile: bool = described(
        False,
        "compile the featurizer with torch.compile: faster on a GPU, with the same results up to rounding",
        "training",
        (*RUNS, "bench data"),
        term=Term(
            "compiled",
            "the part compiled to faster code, whose results are the same up to rounding",
            texts={True: "the featurizer, by torch.compile"},
        ),
    )
    trained: str = described(
        "all",
        "what is trained: all, head, blocks:N (the last N) or a pattern of names; the rest keeps the given weights",
        "training",
        RUNS,
        options=("--train",),
        metavar="PART",
        term=Term("trained", "what was trained of the network; the rest kept its weights"),
    )
    views: int | None = described(
        None,
        "number of fixed augmentations of each photograph that training draws from",
        "training",
        RUNS,
        none="4 where a part is trained, else a new one every time",
        metavar="K",
        term=Term("views", "fixed augmentations of each photograph, the same for all runs, that training drew from"),
    )
    cache: Cache | None = described(
        None,
        "keep the outputs of the frozen part for all runs, in float16 or float32, or compute them anew (none)",
        "training",
        RUNS,
        none="float16 where a part is trained",
        term=Term("cache", "type in which the outputs of the frozen part were kept for all runs"),
    )
    cache_limit: float = described(
        50.0,
        "gigabytes that the kept outputs of the frozen part may take",
        "training",
        RUNS,
        metavar="GB",
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
        "norm to clip the gradient to",
        "training",
        RUNS,
        none="no clipping",
        metavar="X",
        term=Term("clip norm", "norm that the gradient was clipped to"),
    )
    schedule: Schedule = described(
        "constant",
        "course of the learning rate: constant, or cosine or linear down to 0 at the last step",
        "training",
        RUNS,
        term=Term("schedule", "the course of the learning rate over the steps; if not shown, constant"),
    )
    warm_up: int = described(
        0,
        "number of steps at the start in which the learning rate rises to its value",
        "training",
        RUNS,
        metavar="STEPS",
        term=Term("warm-up", "number of steps at the start in which the learning rate rose to its value"),
    )
    layer_decay: float = described(
        1.0,
        "factor of the learning rate from a block of the featurizer to the one before, at most 1",
        "training",
        RUNS,
        metavar="X",
        term=Term(
            "layer decay",
            "factor of the learning rate from a block of the featurizer to the one before; if not shown, 1",
        ),
    )
    l2_sp: float = described(
        0.0,
        "strength of L2-SP, a penalty on the squared distance of the featurizer's weights from their start",
        "training",
        RUNS,
        metavar="X",
        term=Term(
            "L2-SP", "strength of a penalty on the squared distance of the weights before the classifier from the start"
        ),
    )
    all_data: bool = described(
        False,
        "after a first pass whose validation chooses the steps, train from the start on held-out images too",
        "training",
        (*STUDIES, "train"),
        term=Term(
            "all data",
            "a second pass trained on all images of the sources, for the steps that validation chose in the first",
            texts={True: "a second pass"},
        ),
    )
    augmentation: str = described(
        "standard",
        "how photographs are changed at random in training: standard, none or randaugment",
        "training",
        RUNS,
        term=Term("augmentation", "how photographs were changed at random in training"),
    )
    sampling: Sampling = described(
        "uniform",
        "what batches draw alike in every source domain: its rows (uniform) or its classes (balanced)",
        "training",
        RUNS,
        term=Term("sampling", "balanced: batches draw the classes of a domain alike, however few rows they have"),
    )
    class_weights: ClassWeights = described(
        "none",
        "weights of the classes in the loss: none, or balanced, the inverse of their share of the training rows",
        "training",
        RUNS,
        term=Term("class weights", "balanced: rows of rare classes weigh more in the loss"),
    )
    fixed: dict[str, Value] = described(
        {},
        "hyperparameters to fix: optimizer.lr=0.03 for all methods, sgd.lr=0.03 for those with SGD",
        "methods",
        RUNS,
        none="none",
        options=("--set",),
        metavar="PART.NAME=VALUE",
        term=Term("fixed", "hyperparameters fixed by hand: optimizer.lr for all methods, sgd.lr for those with SGD"),
    )

    def __post_init__(self) -> None:
        from shiftproof.studies.checks import check_study

        averaging: object = self.averaging
        if isinstance(averaging, str):  # studies of before there could be several name one
            object.__setattr__(self, "averaging", (averaging,))
        check_study(self)

    def device_here(self) -> torch.device:
        """Return the device for training on this machine.

        Raises:
            FieldError: this machine does not have it.
        """
        from shiftproof.training import check_device

        try:
            return check_device(self.device)
        except ValueError as error:
            raise FieldError("device", str(error)) from error

    @property
    def searched(self) -> Search:
        """The search that settings are of: the one stated, or the dialect's."""
        from shiftproof.protocol import PROTOCOLS

        return self.search or PROTOCOLS[self.protocol].search

    @property
    def weights_file(self) -> Path | None:
        """The file of weights to start from; published ones are downloaded unless they are here already.

        Raises:
            FieldError: they cannot be downloaded.
        """
        from shiftproof.models import HUB, hub_weights

        if self.weights != HUB:
            return self.weights
        assert self.model is not None  # noqa: S101  (checked with the study)
        return hub_weights(self.model)

    @property
    def combinations(self) -> list[Method]:
        """Every algorithm with every annealer, optimizer and averaging if it takes steps, without variants."""
        from shiftproof.algorithms import ALGORITHMS
        from shiftproof.optim import NO_OPTIMIZER

        result = []
        for algorithm in self.algorithms:
            if not ALGORITHMS[algorithm].stepped:
                result.append(Method(algorithm, NO_OPTIMIZER))
                continue
            result += [
                Method(algorithm, optimizer, annealer, averaging=averaging)
                for annealer in self.annealers
                for optimizer in self.optimizers
                for averaging in self.averaging
            ]
        return result

    @property
    def methods(self) -> list[Method]:
        """The rows of the table: every method in every variant whose hyperparameters it has."""
        from shiftproof.optim import NO_OPTIMIZER
        from shiftproof.protocol import applies, hyperparameters

        result = []
        for method in self.combinations:
            names = hyperparameters(*method[:3]).keys()
            fitting = [v for v in self.variants if applies(v.fixed.keys(), names)]
            if method.optimizer == NO_OPTIMIZER:  # more steps change nothing
                fitting = [v for v in fitting if v.fixed] or fitting[:1]
            result += [method._replace(variant=v.name) for v in fitting]
        return result

    @property
    def baseline_method(self) -> Method:
        """The method that the others are compared with."""
        found = self.methods[0] if self.baseline is None else find_method(self.baseline, self.methods)
        assert found is not None  # noqa: S101  (the baseline was checked)
        return found

    def only(self, method: Method) -> Study:
        """Return the study reduced to one of its methods, without hyperparameters fixed for others only."""
        from shiftproof.protocol import hyperparameters

        known, variant = hyperparameters(*method[:3]), self.variant(method)
        return replace(
            self,
            algorithms=(method.algorithm,),
            optimizers=(method.optimizer,),
            annealers=(method.annealer,),
            averaging=tuple(one for one in self.averaging if one == method.averaging),
            variants=(replace(variant, fixed={name: v for name, v in variant.fixed.items() if name in known}),),
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
