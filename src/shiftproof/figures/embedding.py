"""The features before and after training, by class and by domain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shiftproof.base.drawing import COLORS, COLUMN, STYLE, write_figure
from shiftproof.diagnostics import (
    MOST_EMBEDDED,
    Embedding,
    Projection,
    best_projection,
    check_projection,
    embed,
    embedding_figure,
    featurize,
)
from shiftproof.figures.traces import DIAGNOSTICS_FOLDER, Subject, traced
from shiftproof.models import Network
from shiftproof.studies import Study
from shiftproof.training import EVALUATION_BATCH, reproducible

BEFORE = "before"
"""The name, in the numbers, of the features before training."""


def check_classes(subject: Subject) -> None:
    """Raise ValueError for a run whose task is not of classes, by which features are shown."""
    if subject.data.task != "classification":
        raise ValueError(
            f"embedding shows classes, and the task of {subject.spec.dataset} is {subject.data.task}: leave it out"
        )


def embeddings(subject: Subject, network: Network, method: Projection) -> tuple[Embedding, Embedding]:
    """Return the features of held-out images of all domains, including the target's, before and after training.

    Args:
        subject: the run, which determines the initial weights.
        network: the trained network.
        method: projection to two dimensions, "pca" or "umap".

    Raises:
        ValueError: UMAP is not installed, or the task is not of classes.
    """
    check_classes(subject)
    inputs = subject.inputs
    each = -(-MOST_EMBEDDED // len(subject.data.domains))
    samples = [inputs.sample(domain, "out", each) for domain in range(len(subject.data.domains))]
    labels = torch.cat([labels for _, labels in samples])
    domains = torch.cat([torch.full_like(labels, domain) for domain, (_, labels) in enumerate(samples)])

    def features(trained: Network) -> Tensor:
        batches = (part for images, _ in samples for part in torch.split(images, EVALUATION_BATCH))
        return featurize(trained.featurizer, batches)

    with reproducible():
        before, after = (features(each) for each in (subject.algorithm().network, network))
    return embed(before, labels, domains, method), embed(after, labels, domains, method)


def draw_embedding(
    subject: Subject, found: Mapping[str, tuple[Embedding, Embedding]], folder: Path, method: Projection
) -> list[Path]:
    """Draw the features before training and after training with each optimizer side by side, and return the files.

    Args:
        subject: one of the runs, which all start from the same weights.
        found: features before and after training, from `embeddings`, by name of the optimizer.
        folder: folder to write to.
        method: the projection.
    """
    shown = _side_by_side(found)
    domains = [f"{one} (unseen)" if one in subject.spec.targets else one for one in subject.data.domain_names]
    figure = embedding_figure(
        {"before training" if name == BEFORE else name: one for name, one in shown.items()},
        subject.data.classes,
        domains,
        method,
    )
    rows = [row for name, embedding in shown.items() for row in embedding.rows(name)]
    drawn_by = "UMAP" if method == "umap" else "PCA, their two principal directions"
    caption = (
        f"Features of held-out images of all domains, before training and after training with {', '.join(found)}, in "
        f"two dimensions by {drawn_by}, each panel by itself: {subject.setting}. A class has the same colour in all "
        "panels. Beneath: silhouette and cross-validated linear probe of all features, not of their projection, on "
        f"{shown[BEFORE].separation.samples} images, spread as evenly over classes and domains as there are images of "
        "each."
    )
    return write_figure(figure, folder, "embedding", Embedding.HEADER, rows, caption)


def _side_by_side(found: Mapping[str, tuple[Embedding, Embedding]]) -> dict[str, Embedding]:
    """Return the features before training, which all runs share, and those after training with each optimizer."""
    return {BEFORE: next(iter(found.values()))[0], **{name: after for name, (_, after) in found.items()}}


def draw_separation(found: Mapping[str, tuple[Embedding, Embedding]], folder: Path, setting: str) -> list[Path]:
    """Draw how well the features separate classes and domains before and after training; return the files.

    Args:
        found: features before and after training, by name of the optimizer.
        folder: folder to write to.
        setting: description of the runs, for the caption.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [
        (optimizer, when, groups, *getattr(embedding.separation, groups))
        for optimizer, both in found.items()
        for when, embedding in zip(("before", "after"), both, strict=True)
        for groups in ("classes", "domains")
    ]
    shown = _side_by_side(found)
    labels = list(shown)
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * COLUMN, 1.1 + 0.25 * len(labels)), layout="constrained")
        figure.suptitle("How well features separate classes and domains")
        for axis, quantity, title in zip(
            figure.subplots(1, 2, sharey=True), ("silhouette", "probe"), ("silhouette", "linear probe"), strict=True
        ):
            for groups, marker, fill in (("classes", "o", "full"), ("domains", "D", "none")):
                values = [getattr(getattr(e.separation, groups), quantity) for e in shown.values()]
                axis.plot(
                    values, range(len(labels)), marker, color=COLORS[6], fillstyle=fill, markersize=4, label=groups
                )
            axis.set_title(title)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.5, -0.5)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        caption = (
            "How well the features of held-out images separate classes and domains, before and after training: "
            f"{setting}. Left the mean silhouette coefficient, right the accuracy of a cross-validated linear probe."
        )
        header = ("optimizer", "training", "groups", "silhouette", "probe", "chance")
        return write_figure(figure, folder, "separation", header, rows, caption)


def figure_embedding(study: Study, output: Path, trial_seed: int = 0, method: Projection | None = None) -> list[Path]:
    """Train every method of a study at its defaults, draw the features before and after, and return the files.

    Args:
        study: a study with one data set and at most one set of targets; without targets its first domain is left out.
        output: folder of the figures; runs that it holds are not trained again.
        trial_seed: number of the trial.
        method: projection to two dimensions, "pca" or "umap"; None for UMAP where it is installed, else PCA.

    Raises:
        ValueError: the study is not valid, or its parts cannot work together.
    """
    method = method or best_projection()
    check_projection(method)  # before anything is trained
    runs, folder = traced(study, output, trial_seed), output / DIAGNOSTICS_FOLDER
    found = {
        name: embeddings(subject, subject.algorithm(run.state).network, method) for name, (subject, run) in runs.items()
    }
    subject = next(iter(runs.values()))[0]
    return [*draw_embedding(subject, found, folder, method), *draw_separation(found, folder, subject.setting)]
