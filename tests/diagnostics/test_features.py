"""Projections against NumPy, separation of blobs whose answer is known, and what the figure shows."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from shiftproof.diagnostics.features import (
    Embedding,
    Separability,
    embed,
    embedding_figure,
    featurize,
    project,
    separation,
    stratified_sample,
)


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _blobs(class_distance, domain_distance, each=20, classes=3, domains=2, d=8):
    """Unit Gaussians; a class lies along an axis of its own, and so does a domain."""
    labels = torch.arange(classes).repeat_interleave(each).repeat(domains)
    domain = torch.arange(domains).repeat_interleave(classes * each)
    features = _draw(len(labels), d)
    features[torch.arange(len(labels)), labels] += class_distance
    features[torch.arange(len(labels)), classes + domain] += domain_distance
    return features, labels, domain


def test_pca_equals_numpys_up_to_sign():
    features = _draw(50, 7) * torch.arange(1.0, 8.0) + 100
    found = project(features.float().double()).numpy()
    x = features.float().double().numpy()
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    expected = x @ vectors[:, ::-1][:, :2]
    signs = np.sign((expected * found).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-10)
    np.testing.assert_allclose((found**2).sum(0), values[::-1][:2], rtol=1e-12)


def test_pca_has_one_sign():
    features = _draw(30, 4) * torch.tensor([5.0, 3.0, 1.0, 0.1])
    found = project(features)
    # the first component is nearly the first feature, the second the second, both turned the positive way
    centred = features - features.mean(0)
    assert found[:, 0] @ centred[:, 0] > 0
    assert found[:, 1] @ centred[:, 1] > 0
    torch.testing.assert_close(project(features.flip(0)).flip(0), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_too_few_features_are_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \({shape[0]}, {shape[1]}\)"):
        project(torch.ones(shape))


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="Invalid method value: tsne"):
        project(torch.ones(3, 3), "tsne")
    with pytest.raises(ValueError, match="not finite"):
        project(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))


def test_umap_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"pip install 'shiftproof\[umap\]'"):
        project(_draw(20, 3), "umap")


@pytest.mark.slow
def test_umap_keeps_far_blobs_apart_and_repeats_itself():
    pytest.importorskip("umap")
    features, labels, _ = _blobs(50.0, 0.0, each=30)
    points = project(features, "umap", seed=3)
    assert points.shape == (len(features), 2)
    assert points.dtype == torch.float64
    centres = torch.stack([points[labels == c].mean(0) for c in range(3)])
    assert torch.cdist(points, centres).argmin(1).equal(labels)
    torch.testing.assert_close(project(features, "umap", seed=3), points, rtol=0, atol=0)


class _Doubler(nn.Module):
    """Shows whether it is in evaluation mode and outside of autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(0.9)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self.dropout(inputs) * self.factor


def test_features_are_taken_in_evaluation_mode():
    module, inputs = nn.Sequential(_Doubler(), nn.Identity()), _draw(7, 2, 3)
    module[1].eval()
    modes, generator = [m.training for m in module.modules()], torch.get_rng_state()
    found = featurize(module, iter(inputs.split(3)))
    torch.testing.assert_close(found, 2 * inputs.reshape(7, 6), rtol=0, atol=0)
    assert not found.requires_grad
    assert [m.training for m in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    with pytest.raises(ValueError, match="no batch"):
        featurize(module, [])


def test_samples_are_even_over_domains_and_classes():
    labels = torch.tensor([0] * 500 + [1] * 7 + [0] * 300 + [1] * 200)
    domains = torch.tensor([0] * 507 + [1] * 500)
    sample = stratified_sample(labels, domains, seed=1, most=200)
    assert sample.equal(sample.sort().values)
    assert len(sample.unique()) == len(sample)
    counts = {(d, c): int(((domains == d) & (labels == c))[sample].sum()) for d in (0, 1) for c in (0, 1)}
    assert counts == {(0, 0): 50, (0, 1): 7, (1, 0): 50, (1, 1): 50}
    assert stratified_sample(labels, domains, seed=1, most=200).equal(sample)
    assert not stratified_sample(labels, domains, seed=2, most=200).equal(sample)
    assert not set(range(50)) <= set(sample.tolist())  # drawn, not the first of each
    assert len(stratified_sample(labels, domains, most=10_000)) == 1007
    assert len(stratified_sample(labels, domains, most=2)) == 4  # one of each, at least


def test_far_classes_in_one_domain_space():
    found = separation(*_blobs(100.0, 0.0))
    assert found.samples == 120
    assert found.classes.probe == 1.0
    assert found.classes.chance == pytest.approx(1 / 3)
    assert found.classes.silhouette > 0.9
    assert abs(found.domains.silhouette) < 0.05
    assert found.domains.probe == pytest.approx(0.5, abs=0.17)  # chance, within 3.7 standard errors
    assert found.domains.chance == 0.5


def test_far_domains_whose_classes_overlap():
    found = separation(*_blobs(0.0, 100.0))
    assert found.domains.probe == 1.0
    assert found.domains.silhouette > 0.9
    assert abs(found.classes.silhouette) < 0.05
    assert found.classes.probe == pytest.approx(1 / 3, abs=0.16)


def test_the_silhouette_is_rousseeuws():
    features, labels, domains = _blobs(3.0, 1.0, each=6)
    distances = torch.cdist(features, features).numpy()
    groups, widths = labels.numpy(), []
    for i, own in enumerate(groups):
        others = [distances[i, groups == c].mean() for c in set(groups.tolist()) - {own}]
        inner = distances[i, groups == own].sum() / ((groups == own).sum() - 1)
        widths.append((min(others) - inner) / max(min(others), inner))
    found = separation(features, labels, domains)
    assert found.classes.silhouette == pytest.approx(np.mean(widths), rel=1e-9)
    assert separation(1000 * features, labels, domains).classes == pytest.approx(found.classes, rel=1e-9)


def test_the_probe_is_linear():
    angle = torch.linspace(0, 2 * math.pi, 61, dtype=torch.float64)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    features, labels = torch.cat([ring, 5 * ring]), torch.arange(2).repeat_interleave(60)
    assert separation(features, labels, torch.arange(120) % 2).classes.probe < 0.65  # rings are apart, but by no line


def test_one_domain_has_nothing_to_be_told_from():
    features, labels, _ = _blobs(10.0, 0.0)
    found = separation(features, labels, torch.zeros_like(labels))
    assert all(math.isnan(number) for number in found.domains)
    assert found.classes.probe == 1.0


def test_what_cannot_be_measured_is_refused():
    features, labels, domains = _blobs(1.0, 1.0)
    with pytest.raises(ValueError, match="120 features, 119 labels"):
        separation(features, labels[1:], domains)
    with pytest.raises(ValueError, match="class 9 has 1 samples"):
        separation(features, torch.cat([torch.tensor([9]), labels[1:]]), domains)
    features[3, 3] = math.inf
    with pytest.raises(ValueError, match="not finite"):
        separation(features, labels, domains)


def test_an_embedding_is_of_the_sample_and_its_numbers_of_the_features():
    features, labels, domains = _blobs(4.0, 2.0, each=700)  # more than are drawn
    found = embed(features, labels, domains, seed=5)
    sample = stratified_sample(labels, domains, seed=5)
    assert found.labels.equal(labels[sample])
    assert found.domains.equal(domains[sample])
    torch.testing.assert_close(found.points, project(features[sample]))
    assert found.separation == separation(features, labels, domains, seed=5)
    assert found.separation.samples == len(sample) == 1998
    rows = found.rows("before")
    assert len(rows) == 1998
    assert len(rows[0]) == len(Embedding.HEADER)
    assert rows[7] == ("before", *found.points[7].tolist(), int(found.labels[7]), int(found.domains[7]))


def test_the_figure_has_every_point_once_in_each_panel():
    pytest.importorskip("matplotlib")
    before, after = (embed(*_blobs(distance, 1.0)) for distance in (0.0, 9.0))
    figure = embedding_figure({"before": before, "sgd": after}, ["cat", "dog", "cow"], ["day", "night"], "umap")
    assert figure.get_suptitle() == "Features of held-out images, projected by UMAP"
    assert [axes.get_title() for axes in figure.axes] == ["before", "sgd", "", ""]
    for axes, one in zip(figure.axes, [before, after, before, after], strict=True):
        drawn = np.concatenate([points.get_offsets() for points in axes.collections])
        np.testing.assert_array_equal(np.unique(drawn, axis=0), np.unique(one.points.numpy(), axis=0))
        assert len(drawn) == len(one.points)
    looks = {}  # colour and marker of each class, in both panels of the first row
    for axes, one in ((figure.axes[0], before), (figure.axes[1], after)):
        for points in axes.collections:
            look = (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())
            for x in points.get_offsets():
                label = int(one.labels[(one.points.numpy() == x).all(1)][0])
                assert looks.setdefault(label, look) == look
    assert len(set(looks.values())) == 3
    legends = [[text.get_text() for text in part.legends[0].get_texts()] for part in figure.subfigs]
    assert legends == [["cat", "dog", "cow"], ["day", "night"]]
    assert f"linear probe {100 * after.separation.classes.probe:.0f} % (chance 33 %)" in figure.axes[1].get_xlabel()
    assert f"linear probe {100 * before.separation.domains.probe:.0f} % (chance 50 %)" in figure.axes[2].get_xlabel()


@pytest.mark.parametrize("number", [2, 10, 30])
def test_up_to_ten_classes_have_a_colour_each(number):
    pytest.importorskip("matplotlib")
    labels = torch.arange(number).repeat_interleave(2)
    one = Embedding(_draw(2 * number, 2), labels, labels % 2, separation(*_blobs(0.0, 0.0)))
    figure = embedding_figure({"before": one, "after": one}, [f"class {i}" for i in range(number)], ["day", "night"])
    colors = [tuple(points.get_facecolor()[0]) for points in figure.axes[0].collections if len(points.get_offsets())]
    assert len(set(colors)) == min(number, 10)


def test_a_group_without_a_name_is_refused_and_many_classes_get_no_legend():
    pytest.importorskip("matplotlib")
    labels = torch.arange(30).repeat_interleave(2)
    numbers = Separability(0.0, 0.5, 0.5)
    one = Embedding(_draw(60, 2), labels, labels % 2, separation(*_blobs(0.0, 0.0))._replace(classes=numbers))
    figure = embedding_figure({"before": one, "after": one}, [f"class {i}" for i in range(30)], ["day", "night"])
    assert [len(part.legends) for part in figure.subfigs] == [0, 1]
    with pytest.raises(ValueError, match="group 29 has no name: 3"):
        embedding_figure({"before": one, "after": one}, ["a", "b", "c"], ["day", "night"])
    with pytest.raises(ValueError, match="no features"):
        embedding_figure({}, ["a", "b", "c"], ["day", "night"])
