"""Draw a featurizer's features in two dimensions, and measure how well they separate classes and domains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shiftproof.base.drawing import COLUMN, STYLE, line_style
from shiftproof.base.randomness import generator, torch_seed
from shiftproof.gradients import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Projection = Literal["pca", "umap"]
"""How features are drawn in two dimensions."""
MOST_EMBEDDED = 2000
"""The most samples to draw and measure."""
FOLDS = 5
"""Number of folds in the cross-validation of probes."""
MOST_IN_LEGEND = 20
# markers of about equal size in print; seven of them with ten colours make 70 groups look different
MARKER_AREAS = {"o": 7, "s": 6, "^": 8, "D": 5, "v": 8, "*": 14, "P": 10}
PANEL = COLUMN / 2
"""The least width of a panel in inches, which its numbers need."""
_TURNS = 5  # groups are drawn in turns, part by part, so that the last does not hide the others


def featurize(module: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Compute the flattened features (n, d) of inputs, in evaluation mode, and return them on the CPU.

    Args:
        module: maps inputs to features, such as a network without its classifier; it is not changed.
        batches: inputs, each (batch, ...), on the module's device.

    Raises:
        ValueError: there are no batches.
    """
    with torch.no_grad(), evaluation_mode(module):
        features = [module(inputs).flatten(1).cpu() for inputs in batches]
    if not features:
        raise ValueError("there is no batch to take features of")
    return torch.cat(features)


def stratified_sample(labels: Tensor, domains: Tensor, seed: int = 0, most: int = MOST_EMBEDDED) -> Tensor:
    """Return the indices, ascending, of a sample that is balanced over all pairs of a domain and a class.

    Every pair contributes the same number of samples, or all it has if that is fewer: ``most`` divided by the number of
    pairs, rounded down but at least 1. The result depends only on the arguments.

    Args:
        labels: class of each sample, (n,).
        domains: number of each sample's domain, (n,).
        seed: key of the draw.
        most: size of the sample.
    """
    cells = np.stack([domains.cpu().numpy(), labels.cpu().numpy()], 1)
    _, cell_of, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    each = max(1, most // max(1, len(counts)))
    order = generator(seed, "stratified sample").permutation(len(cells))
    shuffled = order[np.argsort(cell_of.ravel()[order], kind="stable")]
    drawn = [cell[:each] for cell in np.split(shuffled, np.cumsum(counts)[:-1])]
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


def check_projection(method: str) -> None:
    """Check that a projection method is known and installed.

    Raises:
        ValueError: it is not.
    """
    if method not in ("pca", "umap"):
        raise ValueError(f"Invalid method value: {method}; it must be pca or umap")
    if method == "umap" and find_spec("umap") is None:
        raise ValueError("umap-learn is not installed: pip install 'shiftproof[umap]'")


def best_projection() -> Projection:
    """Return the projection that shows most: "umap" if umap-learn is installed, else "pca"."""
    return "pca" if find_spec("umap") is None else "umap"


def project(features: Tensor, method: Projection = "pca", seed: int = 0) -> Tensor:
    """Project features (n, d) into two dimensions, (n, 2), float64 on the CPU.

    ``"pca"`` projects the centred features on their first two principal directions, each turned so that its largest
    component is positive. ``"umap"`` is McInnes et al., "UMAP: Uniform Manifold Approximation and Projection"
    (arXiv 1802.03426), computed by umap-learn with its defaults, on one thread. It preserves neighbourhoods; distances
    and sizes of clusters in its picture mean nothing.

    Args:
        features: features (n, d), with n and d at least 2.
        method: "pca" or "umap".
        seed: seed of UMAP's draws; PCA draws nothing.

    Raises:
        ValueError: the method is unknown or not installed, or the features are too few or not finite.

    Examples:
        >>> import torch
        >>> from shiftproof.diagnostics import project
        >>> tuple(project(torch.randn(20, 8)).shape)
        (20, 2)
    """
    check_projection(method)
    _check_finite(features)
    centred = features.detach().double().cpu()
    if min(centred.shape) < 2:
        raise ValueError(f"features of shape {tuple(centred.shape)} cannot be projected on two dimensions")
    centred = centred - centred.mean(0)
    if method == "pca":
        axes: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        return centred @ (axes * signs).T
    umap: Any = import_module("umap")
    reducer = umap.UMAP(n_components=2, random_state=torch_seed(seed, "umap") % 2**32, n_jobs=1)
    return torch.from_numpy(reducer.fit_transform(features.detach().float().cpu().numpy()).astype(np.float64))


class Separability(NamedTuple):
    """How well features separate groups of samples.

    Attributes:
        silhouette: the mean silhouette coefficient, in [-1, 1] (Rousseeuw 1987): near 1 if groups are far apart
            relative to their size, 0 if they overlap. It uses Euclidean distances, because a linear classifier acts on
            the features as they are; their overall scale does not matter.
        probe: cross-validated accuracy of a linear probe, in [0, 1]: logistic regression on standardised features.
        chance: accuracy of always predicting the largest group.
    """

    silhouette: float
    probe: float
    chance: float


class Separation(NamedTuple):
    """How well features separate classes and domains.

    Attributes:
        classes: separability of the classes.
        domains: separability of the domains; its numbers are NaN if there is only one.
        samples: number of samples measured.
    """

    classes: Separability
    domains: Separability
    samples: int


def separation(features: Tensor, labels: Tensor, domains: Tensor, seed: int = 0) -> Separation:
    """Measure how well features separate classes and domains, on a `stratified_sample`.

    Args:
        features: features (n, d).
        labels: class of each sample, (n,).
        domains: number of each sample's domain, (n,).
        seed: key of the sample and of the folds.

    Raises:
        ValueError: the numbers of samples differ, features are not finite, or a class or domain has fewer samples
            than there are folds.
    """
    _check_lengths(features, labels, domains)
    _check_finite(features)
    sample = stratified_sample(labels, domains, seed)
    values = features.detach().cpu()[sample].double().numpy()
    return Separation(
        _separability(values, labels.cpu()[sample].numpy(), "class", seed),
        _separability(values, domains.cpu()[sample].numpy(), "domain", seed),
        len(sample),
    )


def _separability(features: NDArray[np.float64], groups: NDArray[np.int64], kind: str, seed: int) -> Separability:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, counts = np.unique(groups, return_counts=True)
    if len(names) < 2:
        return Separability(np.nan, np.nan, np.nan)
    if counts.min() < FOLDS:
        rarest = names[counts.argmin()]
        raise ValueError(f"{kind} {rarest} has {counts.min()} samples: cross-validation needs at least {FOLDS}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=torch_seed(seed, "folds") % 2**32)
    predicted = cross_val_predict(probe, features, groups, cv=folds)
    return Separability(
        float(silhouette_score(features, groups)),
        float((predicted == groups).mean()),
        float(counts.max() / len(groups)),
    )


@dataclass(frozen=True)
class Embedding:
    """Features in two dimensions, and how well the original features separate classes and domains.

    Attributes:
        points: the projected features (n, 2).
        labels: class of each sample, (n,).
        domains: number of each sample's domain, (n,).
        separation: separation by the original features, not by the points.
    """

    HEADER = ("training", "x", "y", "class", "domain")
    """Columns of `rows`."""

    points: Tensor
    labels: Tensor
    domains: Tensor
    separation: Separation

    def rows(self, training: str) -> list[tuple[str, float, float, int, int]]:
        """Return the points, with columns as in `HEADER`.

        Args:
            training: what the features are of: "before" for those before training, else what trained them.
        """
        columns = (*self.points.T.tolist(), self.labels.tolist(), self.domains.tolist())
        return [(training, *point) for point in zip(*columns, strict=True)]


def embed(features: Tensor, labels: Tensor, domains: Tensor, method: Projection = "pca", seed: int = 0) -> Embedding:
    """Project a `stratified_sample` of features, and measure how well it separates classes and domains.

    Different features of the same samples give the same sample, so that embeddings can be compared.

    Args:
        features: features (n, d).
        labels: class of each sample, (n,).
        domains: number of each sample's domain, (n,).
        method: method of `project`.
        seed: key of the sample, the folds and UMAP's draws.

    Raises:
        ValueError: see `project` and `separation`.
    """
    _check_lengths(features, labels, domains)
    sample = stratified_sample(labels, domains, seed)
    features, labels, domains = (values.detach().cpu()[sample] for values in (features, labels, domains))
    # the sample is already balanced, so separation measures all of it
    return Embedding(project(features, method, seed), labels, domains, separation(features, labels, domains, seed))


def embedding_figure(
    embeddings: Mapping[str, Embedding], classes: Sequence[str], domains: Sequence[str], method: Projection = "pca"
) -> Figure:
    """Draw features side by side, coloured by class above and by domain below, with the numbers below each panel.

    A class has the same colour and marker in all panels, and up to ten classes have a colour each; so have domains. The
    axes have no meaningful unit and therefore no ticks. More than `MOST_IN_LEGEND` classes get no legend.

    Args:
        embeddings: features of the same samples by what they are of, such as "before training" and the optimizers.
        classes: names of the classes, by number.
        domains: names of the domains, by number.
        method: the method that projected all of them.

    Raises:
        ValueError: a class or domain has no name, or there is no embedding.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if not embeddings:
        raise ValueError("there are no features to draw")
    across = len(embeddings)
    width = max(2 * COLUMN, PANEL * across)
    legends = [_legend_rows(names, width) for names in (classes, domains)]
    heights = [width / max(across, 2) + 0.4 + 0.17 * rows for rows in legends]
    with rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights) + 0.3), layout="constrained")
        figure.suptitle(f"Features of held-out images, projected by {method.upper()}")
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
        for row, (part, names, groups) in enumerate(
            zip(parts, (classes, domains), ("classes", "domains"), strict=True)
        ):
            panels = part.subplots(1, across, squeeze=False)[0]
            for axes, (name, one) in zip(panels, embeddings.items(), strict=True):
                numbers = one.labels if groups == "classes" else one.domains
                _draw_groups(axes, one.points, numbers, names, getattr(one.separation, groups))
                if row == 0:
                    axes.set_title(name)
            panels[0].set_ylabel("by class" if groups == "classes" else "by domain")
            if len(names) <= MOST_IN_LEGEND:
                part.legend(
                    *panels[0].get_legend_handles_labels(),
                    loc="outside lower center",
                    ncols=-(-len(names) // legends[row]),
                    columnspacing=1.0,
                    markerscale=1.6,
                    handletextpad=0.1,
                )
        return figure


def _legend_rows(names: Sequence[str], width: float) -> int:
    """Return how many rows a legend takes within a width in inches."""
    if len(names) > MOST_IN_LEGEND:
        return 0
    columns = max(1, int(width / (0.35 + 0.07 * max(map(len, names)))))  # a marker, and each letter
    return -(-len(names) // columns)


def _draw_groups(axes: Axes, points: Tensor, groups: Tensor, names: Sequence[str], measured: Separability) -> None:
    if int(groups.max()) >= len(names):
        raise ValueError(f"group {int(groups.max())} has no name: {len(names)} names are given")
    markers = list(MARKER_AREAS)
    for turn in range(_TURNS):
        for index, name in enumerate(names):
            marker = markers[index % len(markers)]
            x, y = points[(groups == index).nonzero()[turn::_TURNS, 0]].T.numpy()
            axes.scatter(
                x,
                y,
                s=MARKER_AREAS[marker],
                color=line_style(index).color,
                marker=marker,
                alpha=0.7,
                linewidths=0,
                label=name if turn == 0 else None,
                rasterized=True,  # files with thousands of vector markers are slow to display
            )
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(
        f"silhouette {measured.silhouette:.2f}\nlinear probe {100 * measured.probe:.0f} % "
        f"(chance {100 * measured.chance:.0f} %)",
        fontsize=6.5,
    )


def _check_lengths(features: Tensor, labels: Tensor, domains: Tensor) -> None:
    if not len(features) == len(labels) == len(domains):
        raise ValueError(
            f"{len(features)} features, {len(labels)} labels and {len(domains)} domains: there must be one per sample"
        )


def _check_finite(features: Tensor) -> None:
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features are not finite")
