"""The look of figures: a colour stands for one optimizer."""

from __future__ import annotations

import pytest

from shiftproof.base.drawing import COLORS, DASHES, OPTIMIZER_COLORS, line_style, method_colors, method_styles
from shiftproof.optim import OPTIMIZERS


def test_every_optimizer_has_a_colour_of_its_own() -> None:
    assert set(OPTIMIZER_COLORS) == set(OPTIMIZERS)
    assert len(set(OPTIMIZER_COLORS.values())) == len(OPTIMIZERS)


def test_an_optimizer_looks_the_same_whichever_others_are_in_the_figure() -> None:
    [alone] = method_styles(["genie"])
    assert method_styles(["sgd", "adam", "genie"])[2] == method_styles(["genie", "sam"])[0] == alone
    assert method_styles(["coral + sgd", "coral + genie + gga, all parts"])[1] == alone
    assert method_styles(["erm + genie_adamw + ema", "erm + adam"])[0].color == OPTIMIZER_COLORS["genie_adamw"]


def test_dashes_tell_methods_with_the_same_optimizer_apart() -> None:
    styles = method_styles(["erm + sgd", "erm + adam", "coral + sgd", "coral + adam", "irm + sgd"])
    assert [style.color for style in styles] == [OPTIMIZER_COLORS[one] for one in ("sgd", "adam", "sgd", "adam", "sgd")]
    assert [DASHES.index(style.dashes) for style in styles] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "names",
    [
        ["erm + adam", "coral + adam", "irm + adam"],  # the optimizer is no difference
        [f"{algorithm} + {one}" for one in ("sgd", "adam") for algorithm in "abcdef"],  # more than there are dashes
        [*OPTIMIZER_COLORS, "mine", "yours"],  # of plug-ins, more than there are colours left
    ],
)
def test_where_colours_cannot_stand_for_optimizers_they_follow_the_order(names: list[str]) -> None:
    assert method_styles(names) == [line_style(index) for index in range(len(names))]


def test_an_optimizer_of_a_plug_in_has_a_colour_that_no_other_has() -> None:
    styles = method_styles(["mine", "sgd", "yours", "adam"])
    assert len({style.color for style in styles}) == 4
    assert styles[1] == method_styles(["sgd"])[0]


def test_without_dashes_colours_tell_methods_with_the_same_optimizer_apart() -> None:
    assert method_colors(["genie", "sgd"]) == [OPTIMIZER_COLORS["genie"], OPTIMIZER_COLORS["sgd"]]
    assert len(set(method_colors(["sgd", "adam", "coral + sgd", "coral + adam"]))) == 4
    assert method_colors([]) == []


def test_fifty_styles_by_order_are_all_different() -> None:
    assert len({line_style(index) for index in range(50)}) == 50 == len(COLORS) * len(DASHES)
