"""A study: which methods are compared on which data, described without opening any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.data import DATASETS, KINDS, SPLIT_RULES, Kind, SplitRule
from shiftproof.field_error import FieldError
from shiftproof.hparams import Value, is_finite
from shiftproof.models import check_normalisation, default_image_size
from shiftproof.optim.registry import OPTIMIZERS, SEARCHES, Search
from shiftproof.registry import Registry, UnknownNameError
from shiftproof.studies.published import published
from shiftproof.studies.selection import RULES
from shiftproof.training import check_device, check_device_name
from shiftproof.training.protocol import PROTOCOLS
from shiftproof.training.search import SearchSpace, check_fixed, names_of, search_space
from shiftproof.training.spec import AVERAGINGS, PRECISIONS, Averaging, Precision

if TYPE_CHECKING:
    import torch

Tuning = Literal["per_target", "shared"]
TUNINGS: tuple[Tuning, ...] = ("per_target", "shared")


_LISTS: Mapping[str, tuple[str, Registry[Any] | Sequence[str]]] = {
    "datasets": ("data set", DATASETS),
    "algorithms": ("algorithm", ALGORITHMS),
    "optimizers": ("optimizer", OPTIMIZERS),
    "annealers": ("annealer", ANNEALERS),
    "selection": ("selection rule", RULES),
}
_WORDS: Mapping[str, tuple[str, Registry[Any] | Sequence[str]]] = {
    "search": ("search", SEARCHES),
    "protocol": ("protocol", PROTOCOLS),
    "tune": ("tune", TUNINGS),
    "split": ("split", SPLIT_RULES),
    "precision": ("precision", PRECISIONS),
    "averaging": ("averaging", AVERAGINGS),
    "kind": ("kind", KINDS),
}
"""The fields that hold names of our own, with what an error calls one and those that there are."""


class Method(NamedTuple):
    """What a table compares: a row of it."""

    algorithm: str
    optimizer: str
    annealer: str = "none"
    variant: str = ""

    def __str__(self) -> str:
        name = " + ".join(part for part in self[:3] if part != "none")
        return f"{name}, {self.variant}" if self.variant else name


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


@dataclass(frozen=True)
class Study:
    """A grid of runs. Every method gets the same targets, trials and number of settings.

    Attributes:
        name: what it is called.
        published: the published table that it stands beside (`published_results.csv`); None for none.
        datasets: names of data sets.
        data_dir: the folder that holds them, None for embedded ones.
        algorithms: names of algorithms.
        optimizers: names of optimizers.
        annealers: names of annealers.
        variants: ways of running every method.
        targets: domains left out, one cell each; None for all. Several joined by "+" are left out together. With
            several data sets each takes those that are its own.
        single_source: train on one domain, with all others as targets; every domain in turn.
        trials: number of trial seeds.
        hparam_trials: settings that every method chooses from by validation.
        tune: whether a setting is chosen per target and trial, or one for all targets and trials of a data set.
        selection: rules that choose steps and settings, side by side; the first is the table's.
        baseline: the method that differences are taken from, as tables print it; None for the first.
        search: the distributions that settings are drawn from.
        protocol: the dialect of the benchmark protocol.
        steps: updates per run; None for the protocol's number.
        checkpoint_freq: steps between evaluations; None for the protocol's.
        kind: of the images of a folder of one's own; None to go by a look at the files. Augmentation, size, model and
            batch size follow from it.
        model: name of the model; None for a small one on small images. On photographs it must be named.
        image_size: side of the images; None for the data set's own or, of photographs, what the model is made for.
        split: how the held-out images of a domain are chosen.
        weights: file of the weights to start from; learning rates follow from whether there are any.
        normalisation: what the weights were trained with: "imagenet", "half" or "MEAN,STD" (`Normalisation.parse`);
            None for what their file states, else what goes with the model's name.
        fixed: hyperparameters fixed by hand, by "axis.name"; they leave the search.
        accumulate: parts that a batch is split into.
        clip_norm: largest norm of the gradient.
        precision: of the forward passes.
        compile: whether the featurizer is compiled by ``torch.compile``: the same to rounding, faster on a GPU.
        averaging: of the weights over the steps.
        device: where to train; a cluster may have what this machine lacks.

    Raises:
        FieldError: a field is unknown, out of its range or contradicts another, before anything is opened or trained.
    """

    name: str = "comparison"
    published: str | None = None
    datasets: tuple[str, ...] = ("rotated_digits",)
    data_dir: Path | None = None
    algorithms: tuple[str, ...] = ("erm",)
    optimizers: tuple[str, ...] = ("sgd", "adam", "sam", "genie")
    annealers: tuple[str, ...] = ("none",)
    variants: tuple[Variant, ...] = (Variant(""),)
    targets: tuple[str, ...] | None = None
    single_source: bool = False
    trials: int = 3
    hparam_trials: int = 1
    tune: Tuning = "per_target"
    selection: tuple[str, ...] = ("training_domain", "oracle", "last")
    baseline: str | None = None
    search: Search = "short"
    protocol: str = "shiftproof"
    steps: int | None = None
    checkpoint_freq: int | None = None
    kind: Kind | None = None
    model: str | None = None
    image_size: int | None = None
    split: SplitRule = "random"
    weights: Path | None = None
    normalisation: str | None = None
    fixed: dict[str, Value] = field(default_factory=dict)
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "float32"
    compile: bool = False
    averaging: Averaging = "none"
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_names()
        self._check_together()

    def _check_numbers(self) -> None:
        for name in ("trials", "hparam_trials", "accumulate"):
            _check_positive(name, getattr(self, name))
        for name in ("steps", "checkpoint_freq", "clip_norm", "image_size"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if self.image_size == 1:
            raise FieldError("image_size", "image_size must be at least 2 pixels, not 1")

    def _check_names(self) -> None:
        for name, (kind, _) in _LISTS.items():
            names: tuple[str, ...] = getattr(self, name)
            if not names:
                raise FieldError(name, f"name at least one {kind}")
            for one in names:
                check_name(name, one)
            _check_distinct(name, kind, names)
        for name in (*_WORDS, "device", "model", "normalisation"):
            if (given := getattr(self, name)) is not None:
                check_name(name, given)

    def _check_together(self) -> None:
        own = {name: DATASETS[name].kind for name in self.datasets}
        if self.kind is not None and None not in own.values() and set(own.values()) != {self.kind}:
            kinds = ", ".join(f"{name} is of {kind}" for name, kind in own.items())
            raise FieldError("kind", f"{kinds}; kind is for the data set folder")
        if self.targets is not None and not self.targets:
            raise FieldError("targets", "name at least one target")
        _check_distinct("variants", "variant", [variant.name for variant in self.variants])
        for variant in self.variants:
            _check_positive("variants", variant.times, f"times of variant {variant.name}")
            if both := variant.fixed.keys() & self.fixed.keys():
                raise FieldError(
                    "variants", f"variant {variant.name} fixes {', '.join(sorted(both))}, which the study fixes too"
                )
        spaces = self._spaces(self._all)
        check_fixed(self.fixed, spaces)
        for variant in self.variants:
            try:
                check_fixed(variant.fixed, spaces)
            except FieldError as error:
                raise FieldError("variants", str(error)) from error
        if not self.methods:
            raise FieldError("variants", "no method has the hyperparameters of any variant")
        if self.single_source and self.targets is not None:
            raise FieldError("targets", "targets contradict single_source: it leaves out all domains but one in turn")
        if self.single_source and "leave_one_domain_out" in self.selection:
            raise FieldError(
                "selection", "leave_one_domain_out contradicts single_source: no source domain would be left"
            )
        for name, table in (("published", self.published), *(("variants", v.published) for v in self.variants)):
            try:
                if table is not None:
                    published(table)
            except UnknownNameError as error:
                raise FieldError(name, str(error)) from error
        methods = [str(method) for method in self.methods]
        if self.baseline is not None and self.baseline not in methods:
            raise FieldError("baseline", str(UnknownNameError("baseline", self.baseline, methods)))

    def device_here(self) -> torch.device:
        """Return the device, to train on this machine.

        Raises:
            FieldError: this machine does not have it.
        """
        try:
            return check_device(self.device)
        except ValueError as error:
            raise FieldError("device", str(error)) from error

    @property
    def _all(self) -> list[Method]:
        return [
            Method(algorithm, optimizer, annealer)
            for algorithm in self.algorithms
            for annealer in self.annealers
            for optimizer in self.optimizers
        ]

    def _spaces(self, methods: Iterable[Method]) -> list[SearchSpace]:
        return [self.space(method, name) for name in self.datasets for method in methods]

    @property
    def methods(self) -> list[Method]:
        """The rows of the table: every method in every variant that it has the hyperparameters of."""
        result = []
        for method in self._all:
            names = set(names_of(self.space(method, self.datasets[0])))
            result += [method._replace(variant=v.name) for v in self.variants if v.fixed.keys() <= names]
        return result

    @property
    def baseline_method(self) -> Method:
        """The method that differences are taken from."""
        return next(method for method in self.methods if self.baseline in (None, str(method)))

    def only(self, method: Method) -> Study:
        """Return the study of one of its methods alone; what is fixed for others is left out."""
        algorithm, optimizer, annealer, _ = method
        one = replace(
            self,
            algorithms=(algorithm,),
            optimizers=(optimizer,),
            annealers=(annealer,),
            variants=(self.variant(method),),
            fixed={},
            baseline=None,
        )
        known = [name for space in self._spaces([Method(algorithm, optimizer, annealer)]) for name in names_of(space)]
        return replace(one, fixed={name: value for name, value in self.fixed.items() if name in known})

    def variant(self, method: Method) -> Variant:
        """Return the variant of a row."""
        return next(variant for variant in self.variants if variant.name == method.variant)

    def space(self, method: Method, dataset: str, kind: Kind = "photographs") -> SearchSpace:
        """Return the hyperparameters of a method, with the distributions of a data set; names go by no kind."""
        pretrained = self.weights is not None
        return search_space(dataset, kind, pretrained, method.algorithm, method.optimizer, method.annealer, self.search)


def check_name(field_name: str, name: str) -> None:
    """Raise unless there is what a name in a field of a study stands for; in other fields than those of names, never.

    Targets and baselines depend on the rest of the study and are not checked here.

    Raises:
        FieldError: there is none of that name; the message names the near ones.
    """
    try:
        if field_name in {**_LISTS, **_WORDS}:
            kind, known = {**_LISTS, **_WORDS}[field_name]
            if name not in known:
                raise known.error(name) if isinstance(known, Registry) else UnknownNameError(kind, name, list(known))
        elif field_name == "device":
            check_device_name(name)
        elif field_name == "model":
            default_image_size(name)
        elif field_name == "normalisation":
            check_normalisation(name)
        elif field_name == "published":
            published(name)
    except ValueError as error:
        raise FieldError(field_name, str(error)) from error


def _check_positive(field_name: str, value: Any, name: str | None = None) -> None:
    whole = field_name != "clip_norm"
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not is_finite(value) or value <= 0:
        number = "a whole number" if whole else "a number"
        raise FieldError(field_name, f"{name or field_name} must be {number} above 0, not {value!r}")


def _check_distinct(field_name: str, kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise FieldError(field_name, f"{kind} {name} is named twice")
