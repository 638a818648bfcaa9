"""Study files: what they say, what is wrong with them and on which line, and the files that come with the project."""

from pathlib import Path

import pytest

from shiftproof.base.field_error import FieldError
from shiftproof.data import DATASETS
from shiftproof.optim.registry import OPTIMIZERS
from shiftproof.studies import make_plan
from shiftproof.studies.published_results import published
from shiftproof.studies.study import Study, Variant
from shiftproof.studies.study_file import SCALES, StudyFileError, read_study

STUDIES = Path(__file__).parents[2] / "src/shiftproof/studies/named"
NAMES = [
    "ablation",
    "algorithms",
    "annealing",
    "convergence",
    "erm_plus_plus",
    "optimizers",
    "sensitivity",
    "single_source",
]
WORDS_AND_NUMBERS = """\
name: all
published: optimizers
datasets: [PACS, VLCS]
data_dir: data/sets
algorithms: [erm]
optimizers:
  - sgd
  - genie
annealers: [none]
variants:
  - {name: "", published: annealing}
  - name: twice
    times: 2
    fixed: {optimizer.lr: 1e-3, optimizer.dropout: 0, optimizer.precondition: false, optimizer.moment_dtype: bfloat16}
targets: [0, "15", 075, 15+30]
single_source: False
trials: 5_001
hparam_trials: "20"
tune: shared
selection: [oracle, last]
baseline: null
search: protocol
protocol: domainbed-head
steps: null
checkpoint_freq: 100
model: resnet50
image_size: ~
split: grouped
weights: /weights/of resnet.pt
normalisation: 0.5,0.25
fixed: {data.batch_size: 8, model.dropout: .5, optimizer.weight_decay: 1E-4}
accumulate: 2
clip_norm: 1e-1
precision: bf16
averaging: ema
device: cpu
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a study file and returns its path, relative to the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="study.yaml"):
        Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
        return Path(name)

    return write


def _message(path, *arguments, **options):
    with pytest.raises(StudyFileError) as error:
        read_study(path, *arguments, **options)
    return str(error.value)


# What a file says


def test_every_field_is_read_as_its_type(write):
    study, skipped = read_study(write(WORDS_AND_NUMBERS))
    assert skipped == []
    assert study == Study(
        name="all",
        published="optimizers",
        datasets=("PACS", "VLCS"),
        data_dir=Path("data/sets"),
        algorithms=("erm",),
        optimizers=("sgd", "genie"),
        annealers=("none",),
        variants=(
            Variant("", published="annealing"),
            Variant(
                "twice",
                2,
                {
                    "optimizer.lr": 0.001,
                    "optimizer.dropout": 0,
                    "optimizer.precondition": False,
                    "optimizer.moment_dtype": "bfloat16",
                },
            ),
        ),
        targets=("0", "15", "075", "15+30"),
        trials=5001,
        hparam_trials=20,
        tune="shared",
        selection=("oracle", "last"),
        search="protocol",
        protocol="domainbed-head",
        checkpoint_freq=100,
        model="resnet50",
        split="grouped",
        weights=Path("/weights/of resnet.pt"),
        normalisation="0.5,0.25",
        fixed={"data.batch_size": 8, "model.dropout": 0.5, "optimizer.weight_decay": 1e-4},
        accumulate=2,
        clip_norm=0.1,
        precision="bf16",
        averaging="ema",
    )
    assert type(study.fixed["data.batch_size"]) is int
    assert study.variants[1].fixed["optimizer.precondition"] is False


def test_fields_that_a_file_leaves_out_keep_their_defaults(write):
    assert read_study(write("name: short")) == (Study(name="short"), [])


def test_a_quoted_value_is_a_word(write):
    fixed = read_study(
        write("optimizers: [genie]\nfixed: {optimizer.moment_dtype: '16', optimizer.precondition: TRUE}")
    )[0].fixed
    assert fixed == {"optimizer.moment_dtype": "16", "optimizer.precondition": True}


def test_a_path_may_begin_at_the_home_folder(write, monkeypatch):
    monkeypatch.setenv("HOME", "/people/me")
    assert read_study(write("data_dir: ~/data"))[0].data_dir == Path("/people/me/data")


# Scales and the command line

SCALED = """\
name: scaled
datasets: [PACS]
data_dir: data
optimizers: [sgd, adam]
trials: 3
model: resnet50
image_size: 96
search: protocol
protocol: swad
weights: resnet50.pt
clip_norm: 2
scales:
  small: {datasets: [colored_digits], data_dir: null, optimizers: [sam], steps: 300, clip_norm: null}
  smoke: {trials: 1, datasets: [PACS], model: resnet18, targets: [0]}
"""


def test_a_scale_changes_fields_of_the_paper_scale(write):
    paper, small = (read_study(write(SCALED), scale)[0] for scale in ("paper", "small"))
    assert (paper.datasets, paper.optimizers, paper.steps, paper.clip_norm) == (("PACS",), ("sgd", "adam"), None, 2.0)
    assert (small.datasets, small.data_dir) == (("colored_digits",), None)
    assert (small.optimizers, small.steps, small.clip_norm) == (("sam",), 300, None)
    assert (small.name, small.trials, small.weights) == ("scaled", 3, Path("resnet50.pt"))


def test_the_smoke_scale_is_small_whatever_the_file_says(write):
    smoke = read_study(write(SCALED), "smoke")[0]
    assert (smoke.datasets, smoke.data_dir, smoke.model) == (("rotated_digits",), None, "small_conv")
    assert (smoke.image_size, smoke.search, smoke.protocol, smoke.weights) == (None, "short", "shiftproof", None)
    assert (smoke.trials, smoke.targets, smoke.clip_norm) == (1, ("0",), 2.0)


def test_the_command_line_wins_over_everything(write):
    overrides = {"datasets": ("colored_digits",), "model": "resnet18", "trials": 7, "optimizers": ("sam",)}
    for scale in ("paper", "small", "smoke"):
        study = read_study(write(SCALED), scale, overrides)[0]
        assert {name: getattr(study, name) for name in overrides} == overrides


def test_a_scale_that_the_file_lacks_is_refused(write):
    path = write("trials: 2\nscales: {smoke: {steps: 1}}")
    assert _message(path, "small") == "study.yaml: there is no scale small; the file has paper, smoke"
    assert _message(write("trials: 2"), "small") == "study.yaml: there is no scale small; the file has paper"
    assert read_study(path, "smoke")[0].model == "small_conv"  # every file has one


# What is wrong, and where


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("trials: 1\nsteps: [1", 2, "not YAML: expected ',' or ']', but got '<stream end>'"),
        ("trials: 1\n  steps: 2", 2, "not YAML: mapping values are not allowed here"),
        ("trials: 1\n---\ntrials: 2", 2, "not YAML: but found another document"),
        ("trials: *none", 1, "not YAML: found undefined alias 'none'"),
        ("", 1, "a study must be a mapping, not an empty file"),
        ("# a comment\n- trials", 2, "a study must be a mapping, not a list"),
        ("trials", 1, "a study must be a mapping, not 'trials'"),
        ("trials: 2\n\nstep: 3", 3, "unknown field 'step'. Did you mean steps or tune?"),
        ("trials: 2\n[steps]: 3", 2, "the name of a field must be a word, not a list"),
        ("trials: 2\nsteps: 3\ntrials: 4", 3, "field trials is named twice, on line 1 too"),
        ("steps: 3\ntrials: three", 2, "trials must be a whole number, not 'three'"),
        ("trials: 2.5", 1, "trials must be a whole number, not '2.5'"),
        ("trials:", 1, "trials must be a whole number, not null"),
        ("trials: true", 1, "trials must be a whole number, not 'true'"),
        ("clip_norm: true", 1, "clip_norm must be a number, not 'true'"),
        ("trials: [2]", 1, "trials must be a whole number, not a list"),
        ("clip_norm: one", 1, "clip_norm must be a number, not 'one'"),
        ("single_source: yes", 1, "single_source must be true or false, not 'yes'"),
        ("model: {name: resnet50}", 1, "model must be a word, not a mapping"),
        ("weights: [a]", 1, "weights must be a path, not a list"),
        ("tune: [shared]", 1, "tune must be a word, not a list"),
        ("optimizers: sgd", 1, "optimizers must be a list, not 'sgd'"),
        ("optimizers:\n  - sgd\n  - [adam]", 3, "an entry of optimizers must be a word, not a list"),
        ("annealers: [null]", 1, "an entry of annealers must be a word, not null"),
        ("fixed: 1", 1, "fixed must be a mapping, not '1'"),
        ("fixed:\n  optimizer:\n    lr: 1", 3, "optimizer must be a number or a word, not a mapping"),
        (
            "fixed:\n  optimizer.lr: 1\n  optimizer.lr: 2",
            3,
            "hyperparameter optimizer.lr is named twice, on line 2 too",
        ),
        ("variants: [1x]", 1, "a variant must be a mapping, not '1x'"),
        ("variants:\n  - name: 1x\n    time: 1", 3, "unknown field of a variant 'time'. Did you mean times or name?"),
        ("variants:\n  - name: 1x\n    times: one", 3, "times must be a whole number, not 'one'"),
        ("variants:\n  - times: 1", 2, "a variant needs a name"),
        ("scales: [smoke]", 1, "scales must be a mapping, not a list"),
        ("scales:\n  smok: {steps: 1}", 2, "unknown scale 'smok'. Did you mean smoke? Valid names: small, smoke"),
        ("scales:\n  smoke:", 2, "scale smoke must be a mapping, not null"),
        ("scales:\n  smoke:\n    stepss: 1", 3, "unknown field 'stepss'. Did you mean steps"),
        ("scales:\n  smoke:\n    name: other", 3, "unknown field 'name'. Did you mean"),
        ("scales:\n  smoke:\n    scales: {}", 3, "unknown field 'scales'."),
        ("scales:\n  small:\n    trials: x", 3, "trials must be a whole number, not 'x'"),
    ],
)
def test_the_error_of_a_file_names_the_line(write, text, line, message):
    assert _message(write(text)).startswith(f"study.yaml, line {line}: {message}")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("steps: 9\ntrials: 0", 2, "trials must be a whole number above 0, not 0"),
        ("clip_norm: nan", 1, "clip_norm must be a finite number above 0, not nan"),
        ("\ndatasets: [PAC]", 2, "unknown data set 'PAC'. Did you mean PACS"),
        ("optimizers: []", 1, "name at least one optimizer"),
        ("datasets: []\nvariants: [{name: a, fixed: {optimizer.lr: 1}}]", 1, "name at least one data set"),
        ("optimizers:\n- sgd\n- sgd", 1, "optimizer sgd is named twice"),
        ("steps: 9\nprotocol: swat", 2, "unknown protocol 'swat'. Did you mean swad"),
        ("model: resnet51", 1, "unknown model 'resnet51'"),
        (
            "steps: 9\nfixed:\n  optimizer.lrr: 1",
            3,
            "unknown hyperparameter 'optimizer.lrr'. Did you mean optimizer.lr",
        ),
        ("trials: 1\nbaseline: erm + adamw", 2, "unknown baseline 'erm + adamw'. Did you mean erm + adam"),
        ("single_source: true\ntargets: [0]", 2, "targets contradict single_source"),
        ("variants:\n- name: a\n- name: a", 1, "variant a is named twice"),
        ("steps: 9\nclip_norm: 1e999", 2, "clip_norm must be a finite number above 0, not inf"),
        ("steps: 9\nfixed: {optimizer.lr: inf}", 2, "optimizer.lr must be a finite number, not inf"),
        ("steps: 9\nfixed: {optimizer.lr: 1e999}", 2, "optimizer.lr must be a finite number, not inf"),
        ("steps: 9\nfixed: {optimizer.lr: .inf}", 2, "optimizer.lr must be a number, not '.inf'"),
        ("steps: 9\nfixed: {optimizer.lr: true}", 2, "optimizer.lr must be a number, not True"),
        ("steps: 9\nfixed: {optimizer.lr: '1'}", 2, "optimizer.lr must be a number, not '1'"),
        ("steps: 9\nfixed: {data.batch_size: yes}", 2, "data.batch_size must be a whole number, not 'yes'"),
        ("variants: [{name: a, fixed: {optimizer.lr: -inf}}]", 1, "variant a: optimizer.lr must be a finite number"),
        (
            "variants:\n- name: a\n  fixed: {optimizer.lr: 1}\n- name: b.c\n  fixed:\n    optimizer.lr: 1e999",
            6,
            "variant b.c: optimizer.lr must be a finite number, not inf",
        ),
        ("variants:\n- {name: a}\n- name: b\n  times: 0", 4, "times of variant b must be a whole number above 0"),
        ("steps: 9\nvariants: []", 2, "name at least one variant"),
        ("variants: [{name: a, times: 0}]", 1, "times of variant a must be a whole number above 0, not 0"),
    ],
)
def test_an_error_of_the_study_names_the_line_of_its_field(write, text, line, message):
    assert _message(write(text)).startswith(f"study.yaml, line {line}: {message}")


def test_an_error_in_a_scale_names_the_line_there(write):
    path = write("trials: 3\nscales:\n  small:\n    trials: -1")
    assert read_study(path)[0].trials == 3
    assert _message(path, "small") == "study.yaml, line 4: trials must be a whole number above 0, not -1"


@pytest.mark.parametrize(
    ("overrides", "field", "message"),
    [
        ({"hparam_trials": 0}, "hparam_trials", "hparam_trials must be a whole number above 0, not 0"),
        ({"optimizers": ("adm",)}, "optimizers", "unknown optimizer 'adm'. Did you mean adam"),
        ({"datasets": ()}, "datasets", "name at least one data set"),
        ({"fixed": {"optimizer.lrr": 1}}, "optimizer.lrr", "unknown hyperparameter 'optimizer.lrr'"),
        ({"baseline": "erm + yogi"}, "baseline", r"unknown baseline 'erm \+ yogi'"),
        ({"variants": ("c",)}, "variants", "unknown variant 'c'"),
    ],
)
def test_an_error_of_an_override_carries_its_field(write, overrides, field, message):
    path = write("hparam_trials: 2\noptimizers: [adam]\nvariants: [{name: a}, {name: b, fixed: {optimizer.lr: 1}}]")
    with pytest.raises(FieldError, match=message) as error:
        read_study(path, overrides=overrides)
    assert error.value.fields == (field,)


def test_an_error_that_no_line_is_to_blame_for_names_the_file(write, monkeypatch):
    class Refused(Study):
        def __post_init__(self):
            if self.trials == 9:
                raise ValueError("it is too late for this")

    monkeypatch.setattr("shiftproof.studies.study_file.Study", Refused)
    assert _message(write("trials: 9")) == "study.yaml: it is too late for this"


def test_a_file_that_is_no_text_is_refused(write):
    assert _message(write(b"trials: \xff")).startswith("study.yaml: not YAML: ")
    assert _message(write(b"trials: \x00")).startswith("study.yaml: not YAML: ")


def test_a_missing_file_names_the_near_ones(write):
    write("", "optimizers.yaml")
    write("", "ablation.yaml")
    assert _message(Path("optimizer.yaml")) == "there is no study file optimizer.yaml; did you mean optimizers.yaml?"
    assert _message(Path("optimizers")) == "there is no study file optimizers; did you mean optimizers.yaml?"
    assert _message(Path("xyz")) == "there is no study file xyz"
    assert _message(Path("no/such/optimizers.yaml")) == "there is no study file no/such/optimizers.yaml"
    Path("folder").mkdir()
    assert _message(Path("folder")) == "there is no study file folder"


# Names


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("trials: 1\nalgorithms: [erm, coarl]", 2, "unknown algorithm 'coarl'. Did you mean coral"),
        ("algorithms:\n- erm\n- coarl\n- irm", 3, "unknown algorithm 'coarl'. Did you mean coral"),
        ("optimizers: [adamm]", 1, "unknown optimizer 'adamm'. Did you mean adam"),
        ("annealers:\n- none\n- ggal", 3, "unknown annealer 'ggal'. Did you mean gga_l"),
        ("datasets:\n- PACS\n- VLC", 3, "unknown data set 'VLC'. Did you mean VLCS"),
        ("selection:\n- last\n- oracel", 3, "unknown selection rule 'oracel'. Did you mean oracle"),
        ("published: optimisers", 1, "unknown published table 'optimisers'. Did you mean optimizers"),
        ("device: cup", 1, "unknown device 'cup'"),
        ("split: groupd", 1, "unknown split 'groupd'. Did you mean grouped"),
        ("search: shrot", 1, "unknown search 'shrot'. Did you mean short"),
        ("tune: share", 1, "unknown tune 'share'. Did you mean shared"),
        ("precision: b16", 1, "unknown precision 'b16'. Did you mean bf16"),
        ("averaging: swa", 1, "unknown averaging 'swa'. Did you mean swad"),
        ("protocol: swat", 1, "unknown protocol 'swat'. Did you mean swad"),
        ("model: resnet51", 1, "unknown model 'resnet51'. Did you mean resnet"),
        ("fixed:\n  optimizer.lr: 1\n  optimizer.momentm: 0", 3, "unknown hyperparameter 'optimizer.momentm'. Did you"),
        ("variants:\n- {name: a}\n- name: b\n  fixed: {optimizer.dropot: 0}", 4, "unknown hyperparameter 'optimizer"),
        ("variants:\n- {name: a}\n- name: b\n  published: anealing", 4, "unknown published table 'anealing'. Did you"),
    ],
)  # fmt: skip
def test_a_name_that_stands_for_nothing_is_refused_in_every_scale(write, text, line, message):
    scaled = "name: a\nscales:\n  small:\n" + "".join(f"    {each}\n" for each in text.splitlines())
    for path, where in ((write(text), line), (write(scaled, "scaled.yaml"), line + 3)):
        for scale in ("paper", "smoke"):  # neither reads the small scale
            assert _message(path, scale).startswith(f"{path}, line {where}: {message}")


def test_names_that_the_command_line_wins_over_need_not_exist(write):
    path = write("trials: 1\noptimizers: [of_yesterday]")
    assert _message(path).startswith("study.yaml, line 2: unknown optimizer 'of_yesterday'")
    assert read_study(path, overrides={"optimizers": ("sgd",)})[0].optimizers == ("sgd",)


# What is left out

VARIANTS = """\
optimizers: [sgd, genie]
variants:
  - {name: default}
  - {name: dropout 0.8, fixed: {optimizer.dropout: 0.8}}
  - {name: wide, fixed: {optimizer.dropout: 0.8, annealer.radius: 1}}
  - {name: both, fixed: {optimizer.momentum: 0.5, optimizer.dropout: 0.8}}
"""


def test_variants_that_no_method_can_be_run_in_are_left_out(write):
    study, skipped = read_study(write(VARIANTS))
    assert [variant.name for variant in study.variants] == ["default", "dropout 0.8"]
    assert [str(method) for method in study.methods] == [
        "erm + sgd, default",
        "erm + genie, default",
        "erm + genie, dropout 0.8",
    ]
    assert skipped == [
        "skipped: variant wide: no method of the study has annealer.radius",
        "skipped: variant both: no method of the study has optimizer.momentum and optimizer.dropout",
    ]


def test_variants_are_those_of_the_methods_of_the_command_line(write):
    study, skipped = read_study(write(VARIANTS), overrides={"optimizers": ("sgd",)})
    assert [variant.name for variant in study.variants] == ["default"]
    assert skipped[0] == "skipped: variant dropout 0.8: no method of the study has optimizer.dropout"


def test_the_command_line_chooses_variants_by_name(write):
    path = write(VARIANTS)
    study, skipped = read_study(path, overrides={"variants": ("dropout 0.8", Variant("mine"))})
    assert study.variants == (Variant("dropout 0.8", fixed={"optimizer.dropout": 0.8}), Variant("mine"))
    assert skipped == []
    for name, message in (
        ("dropout", "unknown variant 'dropout'. Did you mean dropout 0.8\\? Valid names: default, "),
        ("wide", r"no method of the study has annealer\.radius"),
    ):
        with pytest.raises(FieldError, match=message) as error:
            read_study(path, overrides={"variants": (name,)})
        assert error.value.fields == ("variants",)


def test_a_study_must_keep_a_variant(write):
    path = write("trials: 1\nvariants: [{name: wide, fixed: {annealer.radius: 1}}]")
    assert _message(path) == (
        "study.yaml, line 2: none of the variants can be run: variant wide: no method of the study has annealer.radius"
    )


# The files that come with the project


def _runs(study):
    """Return the number of runs, leave-one-domain-out validation aside."""
    domains = {name: DATASETS[name].outline.domains if DATASETS[name].outline else range(6) for name in study.datasets}
    columns = sum(len(study.targets or domains[name]) for name in study.datasets)
    return len(study.methods) * columns * study.trials * study.hparam_trials


def test_the_files_are_those_of_the_papers():
    assert sorted(path.stem for path in STUDIES.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_every_file_can_be_run(name, scale):
    study, skipped = read_study(STUDIES / f"{name}.yaml", scale)
    assert (study.name, skipped) == (name, [])
    assert study.selection == ("training_domain", "oracle", "last")
    if scale == "paper":
        assert (study.model, study.protocol, study.search, study.steps) == ("resnet50", "swad", "protocol", None)
        assert study.trials == 3
    else:
        assert study.datasets == ("rotated_digits",)
        assert (study.model, study.protocol, study.search) == ("small_conv", "shiftproof", "short")
        assert study.steps == (300 if scale == "small" else 6)
        assert study.weights is study.data_dir is None


@pytest.mark.parametrize("name", NAMES)
def test_the_files_have_every_row_of_their_published_tables(name):
    study = read_study(STUDIES / f"{name}.yaml")[0]
    for variant in study.variants:
        table = variant.published or study.published
        for key in published(table) if table else ():
            assert any(method[:3] == key[:3] and method.variant == variant.name for method in study.methods)
            assert key.dataset in (*study.datasets, "mean", "seconds")


@pytest.mark.parametrize(
    ("name", "small", "smoke"),
    [
        ("ablation", 864, 16),
        ("algorithms", 4320, 24),
        ("annealing", 432, 10),
        ("convergence", 972, 24),
        ("erm_plus_plus", 108, 12),
        ("optimizers", 648, 24),
        ("sensitivity", 432, 20),
        ("single_source", 324, 24),
    ],
)
def test_the_files_say_how_many_runs_they_are(name, small, smoke):
    for scale, runs in (("small", small), ("smoke", smoke)):
        path = STUDIES / f"{name}.yaml"
        assert _runs(read_study(path, scale)[0]) == runs
        [comment] = [line for line in path.read_text().splitlines() if line.startswith(f"  {scale}:")]
        assert f" {runs} runs of " in comment


@pytest.mark.filterwarnings("ignore::shiftproof.algorithms.SingleDomainWarning")
@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.yaml")))
def test_the_smallest_scales_can_be_planned_as_their_files_say(name):
    for scale in ("small", "smoke"):
        assert make_plan(read_study(STUDIES / f"{name}.yaml", scale)[0]).distinct


def test_the_ablation_has_every_combination_of_parts_once():
    study = read_study(STUDIES / "ablation.yaml")[0]
    parts = {"preconditioning": "precondition", "noise": "noise", "dropout": "dropout"}
    for variant in study.variants:
        acting = {part for part, hparam in parts.items() if variant.fixed[f"optimizer.{hparam}"]}
        assert variant.name == {0: "nothing", 3: "all parts"}.get(
            len(acting), " and ".join(p for p in parts if p in acting)
        )
    assert len(study.variants) == 8
    defaults = {f"optimizer.{name}": OPTIMIZERS["genie"].hparams[name].default for name in parts.values()}
    assert study.variants[-1].fixed == defaults
    assert str(study.baseline_method) == "erm + genie_released, nothing"


def test_hyperparameters_of_the_command_line_are_fixed_besides_those_of_the_file(write):
    path = write("optimizers: [sgd]\nfixed: {data.batch_size: 8, optimizer.lr: 0.1}\n")
    study, _ = read_study(path, overrides={"fixed": {"optimizer.lr": 0.5}})
    assert study.fixed == {"data.batch_size": 8, "optimizer.lr": 0.5}


def test_a_published_table_that_does_not_exist_is_refused(write):
    path = write("optimizers: [sgd]\npublished: optimisers\n")
    assert _message(path).startswith(
        "study.yaml, line 2: unknown published table 'optimisers'. Did you mean optimizers"
    )


def test_the_file_of_the_guide_can_be_run(write):
    guide = (Path(__file__).parents[2] / "docs" / "how_to" / "studies.md").read_text(encoding="utf-8")
    path = write(guide.partition("```yaml\n")[2].partition("```")[0])
    for scale in SCALES:
        study, skipped = read_study(path, scale)
        assert (skipped, study.baseline) == ([], "erm + sgd, 1x")
