"""Plans the runs of a study, and finds errors before anything is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from shiftproof.algorithms import ALGORITHMS
from shiftproof.annealing import ANNEALERS
from shiftproof.base.choices import Cache, Kind, Task
from shiftproof.base.field_error import FieldError
from shiftproof.base.hparams import Value
from shiftproof.base.method import Method
from shiftproof.base.plugins import digests, is_of_a_script
from shiftproof.base.registry import UnknownNameError
from shiftproof.base.text import one_line
from shiftproof.data import (
    AUGMENTATIONS,
    DATASETS,
    ClassVectors,
    DatasetNotFoundError,
    DomainDataset,
    read_class_vectors,
    split_domain,
)
from shiftproof.models import (
    MODELS,
    Network,
    Quantity,
    build_network,
    cut,
    freeze_all_but,
    model_hparams,
    weights_fingerprint,
    weights_name,
)
from shiftproof.optim import NO_OPTIMIZER, OPTIMIZERS
from shiftproof.protocol import (
    DEFAULT_METRIC,
    PROTOCOLS,
    RULES,
    SearchSpace,
    fixed_for,
    measures_of,
    search_space,
    setting,
    written_for,
)
from shiftproof.studies.field_info import default_of, info_of
from shiftproof.studies.plan import ABSENT, Grid, Plan
from shiftproof.studies.study import Study
from shiftproof.studies.study_data import (
    class_vectors_of,
    image_size_of,
    model_of,
    normalisation_of,
    open_data,
    say,
    say_normalisation,
)
from shiftproof.training import (
    CONVERGENCE,
    EVALUATION_BATCH,
    SWADS,
    RunSpec,
    check_combination,
    check_inputs_taken,
    check_start,
    results_version,
)

Targets = tuple[str, ...]
_TRANSDUCTIVE = (
    f"predictions use the other images of a test batch, {EVALUATION_BATCH} of one domain in the order of the split"
)
VIEWS = 4
"""Fixed augmentations of each photograph where a part is trained, unless told otherwise."""
LISTED = 4  # a term lists up to this many different numbers, and shows the range of more


def make_plan(study: Study, *, absent: bool = False) -> Plan:
    """Plan the runs of a study.

    Args:
        study: the study to plan.
        absent: also plan runs on published data sets that are not at hand; they cannot be trained.

    Raises:
        ValueError: the study does not fit its data, a hyperparameter is out of its range, or model and data do not fit.

    Examples:
        >>> from shiftproof.studies import Study, make_plan
        >>> plan = make_plan(Study(optimizers=("sgd",), targets=("0", "15"), trials=3))
        >>> [str(method) for method in plan.grids[0].methods], len(plan.runs)
        (['erm + sgd'], 6)
    """
    facts = [_facts(study, name, absent) for name in study.datasets]
    _check_targets(study, facts)
    published = {v.name: table for v in study.variants if (table := v.published or study.published) is not None}
    return Plan(
        study.name,
        tuple(_grid(study, one) for one in facts),
        study.baseline_method,
        study.tune,
        study.protocol,
        study.selection,
        published,
        digests([(RULES, rule) for rule in study.selection]),
        study.metric,
    )


def plan_run(study: Study, trial_seed: int, hparam_seed: int) -> RunSpec:
    """Return one run of a study that has one data set, one method and one set of targets.

    Args:
        study: the study of the run.
        trial_seed: number of the trial.
        hparam_seed: number of the setting; 0 is the defaults.

    Raises:
        ValueError: as `make_plan`.

    Examples:
        >>> from shiftproof.studies import Study, plan_run
        >>> spec = plan_run(Study(optimizers=("adam",), targets=("75",)), trial_seed=0, hparam_seed=0)
        >>> spec.label(), spec.steps
        ('erm + adam on 75, trial 0, setting 0', 300)
    """
    facts = _facts(study, study.datasets[0], absent=False)
    _check_targets(study, [facts])
    [targets], [method] = _columns(study, facts), study.methods
    spec = _run_spec(study, facts, method, targets, trial_seed, hparam_seed)
    _check_buildable(study, facts, [spec])
    return spec


@dataclass(frozen=True)
class _Facts:
    """The facts about a data set that planning needs, whether it is at hand or not."""

    key: str
    name: str
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    num_classes: int
    images: int
    input_shape: tuple[int, ...]
    kind: Kind
    task: Task
    model: str
    image_size: int | None
    fingerprint: str
    data: DomainDataset | None
    weights: Path | None
    class_vectors: ClassVectors | None


def _facts(study: Study, key: str, absent: bool) -> _Facts:
    weights = study.weights_file
    _fingerprint(weights)  # an error before pictures are decoded
    try:
        data = open_data(study, key)
    except DatasetNotFoundError:
        outline = DATASETS[key].outline
        if not absent or outline is None:
            raise
        size = image_size_of(study, key)
        assert size is not None  # noqa: S101  (published sets are photographs)
        shape, model = (3, size, size), model_of(study, key)
        return _Facts(
            key,
            key,
            outline.domains,
            (),
            outline.classes,
            outline.images,
            shape,
            "photographs",
            "classification",
            model,
            size,
            ABSENT,
            None,
            weights,
            None if (vectors := class_vectors_of(study)) is None else read_class_vectors(vectors),
        )
    images = sum(len(domain) for domain in data.domains)
    return _Facts(
        key,
        data.name,
        data.domain_names,
        data.classes,
        len(data.classes),
        images,
        data.input_shape,
        data.kind,
        data.task,
        model_of(study, key),
        image_size_of(study, key),
        data.fingerprint,
        data,
        weights,
        data.class_vectors,
    )


def _chosen(facts: _Facts, target: str) -> Targets | None:
    """Return the domains that a target names, in the data set's order; None if some belong to no domain of it."""
    together = _split(target, facts.domains)
    if not all(name in facts.domains for name in together):
        return None
    return tuple(name for name in facts.domains if name in together)  # so that one set of targets has one name


def _split(target: str, names: Sequence[str]) -> list[str]:
    """Split a target at the plus signs between names; names may hold plus signs themselves."""
    fitting = [name for name in names if f"{target}+".startswith(f"{name}+")]
    first = max(fitting, key=len, default=target.partition("+")[0])
    return [first] if first == target else [first, *_split(target[len(first) + 1 :], names)]


def _check_targets(study: Study, facts: Sequence[_Facts]) -> None:
    for target in study.targets or ():
        if not any(_chosen(one, target) for one in facts):
            valid = list(dict.fromkeys(name for one in facts for name in one.domains))
            unknown = next((name for name in _split(target, valid) if name not in valid), target)
            where = ", ".join(one.name for one in facts)
            raise FieldError("targets", str(UnknownNameError(f"domain of {where}", unknown, valid)))


def _columns(study: Study, facts: _Facts) -> tuple[Targets, ...]:
    """Return one entry per column of the table: the domains left out together."""
    if len(facts.domains) == 1:
        raise ValueError(
            f"{facts.name} has only one domain, {facts.domains[0]}: leaving it out leaves nothing to train on"
        )
    if study.single_source:
        return tuple(tuple(name for name in facts.domains if name != source) for source in facts.domains)
    targets = facts.domains if study.targets is None else study.targets
    columns = [chosen for target in targets if (chosen := _chosen(facts, target)) is not None]
    if not columns:
        raise FieldError("targets", f"{facts.name} has none of the targets {', '.join(targets)}")
    for column in columns:
        name = "+".join(column)
        if len(column) == len(facts.domains):
            raise FieldError("targets", f"target {name} leaves no source domain to train on")
        if columns.count(column) > 1:
            raise FieldError("targets", f"target {name} is named twice")
    return tuple(columns)


def _pairs(study: Study, facts: _Facts, columns: Sequence[Targets]) -> list[Targets]:
    """Return the pairs of domains that runs leave out for rules that need them, as leave-one-domain-out validation."""
    needing = [rule for rule in study.selection if RULES[rule].needs_pairs]
    if not needing:
        return []
    if len(facts.domains) < 3:
        raise FieldError("selection", f"{needing[0]} needs three domains; {facts.name} has {len(facts.domains)}")
    if any(len(column) > 1 for column in columns):
        raise FieldError("selection", f"{needing[0]} is defined for targets of one domain")
    pairs = {
        tuple(name for name in facts.domains if name in (target, other)): None
        for (target,) in columns
        for other in facts.domains
        if other != target
    }
    return list(pairs)


def _grid(study: Study, facts: _Facts) -> Grid:
    columns = _columns(study, facts)
    methods = study.methods
    specs = [
        _run_spec(study, facts, method, targets, trial, hparam_seed)
        for left_out in (columns, _pairs(study, facts, columns))
        for trial in range(study.trials)
        for targets in left_out
        for hparam_seed in range(study.hparam_trials)
        for method in methods
    ]
    _check_buildable(study, facts, specs)
    return Grid(
        facts.name,
        facts.domains,
        facts.classes,
        facts.images,
        tuple(methods),
        columns,
        study.trials,
        study.hparam_trials,
        _terms(study, facts, specs),
        tuple(specs),
    )


def _run_spec(study: Study, facts: _Facts, method: Method, targets: Targets, trial: int, hparam_seed: int) -> RunSpec:
    """Return the run of a method in one of its settings; every `RunSpec` of a study is made here."""
    variant, protocol = study.variant(method), PROTOCOLS[study.protocol]
    steps = variant.times * (study.steps or protocol.steps(facts.name, facts.kind, study.weights is not None))
    freq = study.checkpoint_freq or protocol.checkpoint_freq(facts.name, facts.kind, steps)
    _check_schedule(study, steps, freq)
    hparams = setting(
        _space(study, facts, method),
        _fixed(study, method),
        hparam_seed,
        0 if study.tune == "shared" else trial,  # a setting shared by all trials has the same values in all
        study.protocol,
    )
    as_in_study = {name: value for name, value in vars(study).items() if name in _SPEC_FIELDS}
    worked_out = {
        "algorithm": method.algorithm,
        "optimizer": method.optimizer,
        "annealer": method.annealer,
        "variant": method.variant,
        "averaging": method.averaging,
        "targets": targets,
        "trial_seed": trial,
        "hparam_seed": hparam_seed,
        "hparams": hparams,
        "steps": protocol.rounded(steps, freq),
        "checkpoint_freq": freq,
        "dataset": facts.name,
        "data_fingerprint": facts.fingerprint,
        "model": facts.model,
        "image_size": facts.image_size,
        "kind": None if DATASETS[facts.key].kind else facts.kind,
        "weights": _fingerprint(facts.weights),
        "class_vectors": None if facts.class_vectors is None else facts.class_vectors.fingerprint,
        "normalisation": str(normalisation_of(study, facts.input_shape[0])) if study.normalisation else None,
        "task": facts.task,
        "metric": None if study.metric == DEFAULT_METRIC[facts.task] else study.metric,
        "device": torch.device(study.device).type,
        # vectors are soon scored, and then any measure can select
        "score_targets": facts.kind == "vectors" or any(RULES[rule].every_step for rule in study.selection),
        "plugins": _digests(study, facts, method),
        "results_version": results_version(method.algorithm, study.class_weights),
        "views": _views(study, facts),
    }
    if not ALGORITHMS[method.algorithm].stepped:
        # without weights its features are the vectors themselves (`check_start`)
        worked_out |= _WITHOUT_STEPS | {"trained": "all" if study.weights is None else "head"}
    spec = RunSpec(**{**as_in_study, **worked_out})
    return replace(spec, cache=_cache(study, facts, spec))


_WITHOUT_STEPS: dict[str, Any] = {
    "steps": 1,  # which moves nothing, and is evaluated
    "checkpoint_freq": 1,
    "views": 0,
    "accumulate": 1,
    "clip_norm": None,
    "schedule": "constant",
    "warm_up": 0,
    "layer_decay": 1.0,
    "l2_sp": 0.0,
}
"""Fields of runs without steps, whatever the study says."""


def _digests(study: Study, facts: _Facts, method: Method) -> dict[str, str]:
    """Return the digests of the plug-ins that a run's parts are of, by name."""
    return digests(
        [
            (ALGORITHMS, method.algorithm),
            *([(OPTIMIZERS, method.optimizer)] if method.optimizer != NO_OPTIMIZER else []),
            (ANNEALERS, method.annealer),
            (DATASETS, facts.key),
            (AUGMENTATIONS, study.augmentation),
            (MODELS, facts.model),
        ]
    )


def _views(study: Study, facts: _Facts) -> int:
    """Return the number of fixed augmentations of a run; 0 if it augments anew every time, or not at all."""
    if facts.kind != "photographs" or study.augmentation == "none":
        return 0
    return study.views or (0 if study.trained == "all" else VIEWS)


def _cache(study: Study, facts: _Facts, spec: RunSpec) -> Cache:
    """Return how a run keeps the outputs of the frozen part, and say what that takes.

    Raises:
        FieldError: it shall be kept and cannot, or takes more than the limit.
    """
    if spec.trained == "all" or study.cache == "none" or facts.kind == "vectors":
        if study.cache not in (None, "none"):
            raise FieldError(("cache", "trained"), f"cache {study.cache} is for pictures of which a part is trained")
        return "none"
    if ALGORITHMS[spec.algorithm].reads_pictures:
        say(f"{spec.algorithm} reads pictures or inner stages: it trains without the cache of the frozen part")
        return "none"
    if is_of_a_script(MODELS, facts.model) or is_of_a_script(AUGMENTATIONS, study.augmentation):
        say("the frozen part is computed anew at every step: nothing tells when code of a script changes")
        return "none"
    own = {name: spec.axis("model")[name] for name in model_hparams(facts.model)}
    found = _trunk(facts.model, facts.input_shape, spec.trained, json.dumps(own))
    if isinstance(found, str):
        if study.cache is None:
            say(f"the frozen part of {facts.model} is computed anew at every step: {found}")
            return "none"
        raise FieldError(("cache", "trained"), f"the frozen part of {facts.model} cannot be kept: {found}")
    cache = study.cache or "float16"
    files = 1 + spec.views
    size = facts.images * files * math.prod(found.shape) * np.dtype(cache).itemsize / 1e9
    text = f"{facts.images:,} pictures of {facts.name} in {files} views, {size:.2g} GB in {cache}"
    if size > study.cache_limit:
        raise FieldError(
            ("cache_limit", "cache"),
            f"outputs of the frozen part would take more than {study.cache_limit:g} GB: {text}; raise the limit, or "
            "set cache to none",
        )
    say(f"outputs of {facts.model} up to {found.last} are computed once and kept for all runs: {text}")
    return cache


class _Trunk(NamedTuple):
    """The shape of a trunk's output, and the name of its last part."""

    shape: tuple[int, ...]
    last: str


@lru_cache(maxsize=16)
def _trunk(model: str, input_shape: tuple[int, ...], trained: str, hparams: str) -> _Trunk | str:
    """Return the trunk of a model of which a part is trained, or why it has none."""
    network = build_network(model, input_shape, 2, dropout=0.0, seed=0, hparams=json.loads(hparams))
    freeze_all_but(network, trained)
    try:
        _, trunk, _, shape = cut(network)
    except ValueError as error:
        return str(error)
    return _Trunk(shape, trunk.names[-1])


_SPEC_FIELDS = {field.name for field in fields(RunSpec)}


def _space(study: Study, facts: _Facts, method: Method) -> SearchSpace:
    fixed, pretrained, part = _fixed(study, method), study.weights is not None, study.trained != "all"
    return search_space(facts.key, facts.kind, pretrained, *method[:3], study.searched, fixed, facts.model, part)


def _fixed(study: Study, method: Method) -> dict[str, Value]:
    """Return the hyperparameters that a study and its variant fix for a method, by "axis.name"."""
    return fixed_for(study.fixed, *method[:3]) | fixed_for(study.variant(method).fixed, *method[:3])


def _check_schedule(study: Study, steps: int, freq: int) -> None:
    """Raise for runs that end before the evaluations that score them."""
    protocol = PROTOCOLS[study.protocol]
    at_fault = ("checkpoint_freq", "steps") if study.checkpoint_freq else ("steps", "protocol")
    if protocol.last_evaluated(steps, freq) < min(steps, freq):
        raise FieldError(
            at_fault,
            f"the protocol {study.protocol} would evaluate only step 1 of {steps} steps, with {freq} between "
            "evaluations; ask for more steps or a smaller checkpoint_freq",
        )
    evaluations = protocol.evaluations(protocol.rounded(steps, freq), freq)
    needing = [averaging for averaging in study.averaging if averaging in SWADS]
    if needing and evaluations < CONVERGENCE:
        raise FieldError(
            at_fault,
            f"{needing[0]} needs {CONVERGENCE} evaluations to start averaging; {steps} steps have {evaluations}",
        )


@lru_cache(maxsize=2)
def _fingerprint(weights: Path | None) -> str | None:
    try:
        return None if weights is None else weights_fingerprint(weights)
    except (FileNotFoundError, ValueError) as error:
        raise FieldError("weights", str(error)) from error


def _terms(study: Study, facts: _Facts, specs: Sequence[RunSpec]) -> dict[str, Any]:
    """Return what the study's accuracies depend on, by name."""
    specs = [spec for spec in specs if ALGORITHMS[spec.algorithm].stepped] or specs
    caches = sorted({spec.cache for spec in specs})
    values = {
        **vars(study),
        "datasets": facts.name,
        "search": study.searched,
        "steps": _listed(spec.steps for spec in specs),
        "checkpoint_freq": _listed(spec.checkpoint_freq for spec in specs),
        "model": facts.model,
        "kind": specs[0].kind,
        **_table_terms(study, facts),
        "image_size": facts.image_size,
        "weights": weights_name(facts.weights) if facts.weights else None,
        "class_vectors": None if study.class_vectors is None else one_line(study.class_vectors.name),
        "normalisation": str(normalisation_of(study, facts.input_shape[0]) or ""),
        "averaging": "" if study.averaging == ("none",) else ", ".join(study.averaging),
        "views": specs[0].views,
        "cache": None if caches == ["none"] else " and ".join(caches),
        "fixed": ", ".join(f"{name}={value}" for name, value in study.fixed.items()),
    }
    of_no_field = _terms_of_no_field(study, facts, specs)
    terms: dict[str, Any] = {}
    for field in sorted(fields(Study), key=lambda one: not ((term := info_of(one).term) and term.always)):
        term, value = info_of(field).term, values[field.name]
        if term is not None and (term.always or (value and value != default_of(field))):
            terms[term.label] = term.texts.get(value, value)
        terms.update(of_no_field.get(field.name, {}))
    return terms


def _table_terms(study: Study, facts: _Facts) -> dict[str, Any]:
    """Return what the fields of a table show of a data set."""
    texts = {"labels": ", ".join(study.labels), "features": ", ".join(study.features)}
    if not DATASETS[facts.key].table:
        texts = dict.fromkeys(("domain", "labels", "features", "image", "group"), "")
    left_out = facts.data.left_out if facts.data is not None else 0
    return {
        **texts,
        "task": None if facts.task == "classification" else facts.task,
        "missing_labels": f"{left_out} rows left out" if left_out else "",
    }


def _terms_of_no_field(study: Study, facts: _Facts, specs: Sequence[RunSpec]) -> dict[str, dict[str, Any]]:
    """Return the terms that belong to no field of the study, by the field whose term they follow."""
    protocol = PROTOCOLS[study.protocol]
    given = study.weights is not None
    transductive = [name for name in study.algorithms if ALGORITHMS[name].transductive]
    terms: dict[str, dict[str, Any]] = {
        "datasets": {"encoder": (facts.data.encoder or None) if facts.data is not None else None},
        "checkpoint_freq": {
            "images per domain and step": _listed(int(spec.hparams["data.batch_size"]) for spec in specs),
        },
        "device": {
            "transductive": f"{', '.join(transductive)}: {_transductive(specs)}" if transductive else None,
            "published start": protocol.start if given and study.protocol != "shiftproof" else None,
        },
        "normalisation": {
            "batch norm": ("frozen" if protocol.freeze_batch_norm else "free") if given else None,
            "classifier start": _classifier_start(study),
        },
    }
    return {field: {name: text for name, text in of.items() if text is not None} for field, of in terms.items()}


def _classifier_start(study: Study) -> str | None:
    """Return where the classifier starts; None if all starts at random, or none is trained."""
    if study.weights is None or study.class_vectors is not None:
        return None
    return "zero" if PROTOCOLS[study.protocol].zero_classifier else "random"


def _transductive(specs: Sequence[RunSpec]) -> str:
    """Return what the predictions of transductive algorithms depend on."""
    grouped = [spec.algorithm for spec in specs if spec.hparams.get("algorithm.evaluates_in_groups")]
    return (
        f"{_TRANSDUCTIVE}; {grouped[0]} in groups of a training batch's images of a domain"
        if grouped
        else _TRANSDUCTIVE
    )


def _listed(numbers: Iterable[int]) -> int | str:
    distinct = sorted(set(numbers))
    if len(distinct) > LISTED:
        return f"{distinct[0]} to {distinct[-1]}"
    return distinct[0] if len(distinct) == 1 else " ".join(map(str, distinct))


def _check_buildable(study: Study, facts: _Facts, specs: Sequence[RunSpec]) -> None:
    """Split every domain and build each distinct setting once, so that errors show before training.

    Raises:
        ValueError: a hyperparameter is out of its range, or model and data, or parts of a method, do not fit.
    """
    if facts.data is not None:
        if study.split == "grouped" and all(domain.groups is None for domain in facts.data.domains):
            reason = "no two of its files show one photograph"
            if DATASETS[facts.key].table:
                reason = "name their column as its group"
            raise FieldError("split", f"{facts.name} has no groups to split by: {reason}")
        for i, domain in enumerate(facts.data.domains):
            split_domain(domain, study.split, 0, i)
    if study.trained != "all" and study.weights is None:
        raise FieldError(
            ("trained", "weights"),
            f"to train {study.trained} alone leaves the rest as it starts, at random without weights",
        )
    if study.augmentation != "standard" and facts.kind != "photographs":
        raise FieldError("augmentation", f"augmentation is of photographs, and {facts.name} has {facts.kind}")
    if study.metric is not None and study.metric not in (known := measures_of(facts.task)):
        raise FieldError("metric", str(UnknownNameError(f"measure of {facts.task}", study.metric, known)))
    of_model = {f"model.{name}" for name in ("dropout", *model_hparams(facts.model))}
    for name in study.fixed:
        if name.startswith("model.") and name not in of_model:
            raise FieldError(name, f"model '{facts.model}' has no {name.removeprefix('model.')}")
    build = _Builder(study, facts)
    for algorithm in {spec.algorithm: spec for spec in specs}.values():
        check_inputs_taken(algorithm, facts.kind)
    for spec in specs:
        batch_size = int(spec.hparams["data.batch_size"])
        if batch_size < 1:
            raise FieldError("data.batch_size", f"data.batch_size must be a whole number above 0, not {batch_size!r}")
        if batch_size % study.accumulate:
            raise FieldError(
                ("accumulate", "data.batch_size"),
                f"a batch of {batch_size} cannot be split into {study.accumulate} equal parts",
            )
        build.check(spec)


class _Builder:
    """Builds every distinct part of a study's runs once."""

    def __init__(self, study: Study, facts: _Facts) -> None:
        self.study, self.facts = study, facts
        self._networks: dict[str, Network] = {}
        self._built: set[str] = set()

    def check(self, spec: RunSpec) -> None:
        network = self._network(spec)
        check_start(spec, network.featurizer)
        sources = len(self.facts.domains) - len(spec.targets)
        self._once(
            spec, "annealer", [sources, spec.steps], lambda h: ANNEALERS[spec.annealer](**h).check(sources, spec.steps)
        )
        self._check_combination(spec, sources)

        def build(hparams: dict[str, Any]) -> object:
            return ALGORITHMS[spec.algorithm](deepcopy(network), sources, **hparams)  # some modify the network

        self._once(spec, "algorithm", [sources], build)
        if spec.optimizer != NO_OPTIMIZER:
            self._once(
                spec, "optimizer", [], lambda h: OPTIMIZERS[spec.optimizer](network.classifier.parameters(), **h)
            )

    def _network(self, spec: RunSpec) -> Network:
        hparams, vectors = spec.axis("model"), self.facts.class_vectors
        key = json.dumps([spec.trained, hparams], sort_keys=True)
        if key not in self._networks:
            self._networks[key] = network = build_network(
                self.facts.model,
                self.facts.input_shape,
                self.facts.num_classes,
                dropout=hparams["dropout"],
                seed=0,
                weights=self.facts.weights,
                normalisation=self.study.normalisation,
                hparams=hparams,
                task=self.facts.task,
                quantity=Quantity(0.0, 1.0) if self.facts.task == "regression" else None,  # any will do
                class_vectors=None if vectors is None else torch.from_numpy(vectors.vectors),
            )
            freeze_all_but(network, spec.trained)
            if network.normalisation is not None:
                say_normalisation(self.study, self.facts.model, network.normalisation)
        return self._networks[key]

    def _check_combination(self, spec: RunSpec, sources: int) -> None:
        key = json.dumps([sources, spec.steps, str(spec.method), spec.hparams])
        if key not in self._built:
            check_combination(spec, sources)
            self._built.add(key)

    def _once(self, spec: RunSpec, axis: str, facts: list[int], build: Callable[[dict[str, Any]], object]) -> None:
        hparams = spec.axis(axis)
        key = json.dumps([axis, getattr(spec, axis), facts, hparams])
        if key in self._built:
            return
        try:
            build(hparams)
        except ValueError as error:
            raise FieldError(self._at_fault(spec, axis, build), str(error)) from error
        self._built.add(key)

    def _at_fault(self, spec: RunSpec, axis: str, build: Callable[[dict[str, Any]], object]) -> tuple[str, ...]:
        """Return what a part fails by: hyperparameters fixed by hand, if it works at their defaults, or itself."""
        method, hparams = spec.method, spec.axis(axis)
        space = _space(self.study, self.facts, method)[axis]

        def works_with_default(names: Sequence[str]) -> bool:
            try:
                build({**hparams, **{name: space[name].default for name in names}})
            except ValueError:
                return False
            return True

        in_study, in_variant = (
            written_for(fixed, *method[:3]) for fixed in (self.study.fixed, self.study.variant(method).fixed)
        )
        fixed = [name for name in hparams if f"{axis}.{name}" in in_study]
        guilty = [name for name in fixed if works_with_default([name])]
        if not guilty and fixed and works_with_default(fixed):  # several
            guilty = fixed
        varied = ["variants"] if any(f"{axis}.{name}" in in_variant for name in hparams) else []
        return (*(in_study[f"{axis}.{name}"] for name in guilty), *varied, f"{axis}s")
