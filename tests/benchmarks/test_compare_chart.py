"""The README's picture."""

import re

from benchmarks.compare_chart import draw
from shiftproof.base.drawing import OPTIMIZER_COLORS


def _line(optimizer, target, difference, low="", high="", averaging="none", selection="training_domain"):
    names = ("optimizer", "averaging", "target", "difference", "difference_low", "difference_high", "selection")
    return dict(zip(names, (optimizer, averaging, target, difference, low, high, selection), strict=True))


def test_each_method_but_the_baseline_is_drawn_by_the_first_rule():
    lines = [
        _line("sgd", target, "0.0", selection=rule)
        if name is None
        else _line(name, target, "0.01", "-0.02", "0.04", averaging, rule)
        for rule in ("training_domain", "oracle")
        for name, averaging in ((None, ""), ("adam", "none"), ("adam", "ema"))
        for target in ("0", "mean", "worst")
    ]
    picture = draw(lines).decode()
    texts = [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]
    assert [text for text in texts if "adam" in text or text == "sgd"] == ["adam", "adam + ema"]
    assert texts.count("points of accuracy above sgd") == 2
    assert {"mean of the unseen domains", "worst unseen domain"} <= set(texts)


def test_an_optimizer_has_the_colour_that_it_has_in_every_figure():
    lines = [_line(name, column, "0.01", "-0.02", "0.04") for column in ("mean", "worst") for name in OPTIMIZER_COLORS]
    strokes = re.findall(r"stroke: (#[0-9a-f]{6})", draw(lines).decode())
    assert set(OPTIMIZER_COLORS.values()) <= {color.upper() for color in strokes}
