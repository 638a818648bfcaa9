"""LaTeX tables: what a small parser reads of them, and TeX itself where it is installed."""

import re
import shutil
import subprocess

import pytest

from made_up import results_of
from shiftproof.studies import Study, make_plan
from shiftproof.tables import MARK_NOTE, as_latex, as_markdown, build_tables

ACCURACIES = {"sgd": (0.60, 0.61, 0.62), "adam": (0.70, 0.72, 0.71), "genie": (0.50, 0.53, 0.49)}


def _latex(trials, accuracies=ACCURACIES, datasets=("rotated_digits",)):
    targets = ("0", "minus90")[: len(datasets)]
    study = Study(name="two_sets", datasets=datasets, optimizers=tuple(accuracies), targets=targets, trials=trials)
    results = results_of(make_plan(study), lambda spec: (0.9, *[accuracies[spec.optimizer][spec.trial_seed]] * 2))
    return results, as_latex(results)


def _environments(text):
    """The contents of every table, after a check that environments and braces close in their order."""
    opened, tables = [], []
    for match in re.finditer(r"\\(begin|end)\{(\w+)\}", text):
        kind, name = match.groups()
        if kind == "begin":
            opened.append((name, match.end()))
        else:
            begun, start = opened.pop()
            assert begun == name
            if name == "table":
                tables.append(text[start : match.start()])
    assert opened == []
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    return tables


def _rows(table):
    lines = [line.removesuffix(r" \\") for line in table.splitlines() if line.endswith(r"\\")]
    return [re.split(r" (?<!\\)& ", line) for line in lines]


def test_every_table_has_rules_a_caption_and_a_label_of_its_own():
    _, text = _latex(3, datasets=("rotated_digits", "colored_digits"))
    tables = _environments(text)
    labels = [re.findall(r"\\label\{(.*?)\}", table) for table in tables]
    assert all(len(label) == 1 for label in labels)
    assert len({label for [label] in labels}) == len(tables)
    assert ["tab:two-sets-accuracy"] in labels
    assert ["tab:colored-digits-differences"] in labels
    for table in tables:
        order = [
            r"\caption{",
            r"\label{",
            r"\begin{tabular}",
            r"\toprule",
            r"\midrule",
            r"\bottomrule",
            r"\end{tabular}",
        ]
        assert sorted(map(table.index, order)) == [table.index(one) for one in order]
        assert all(table.count(one) == 1 for one in order)
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", table)[1]
        assert {len(row) for row in _rows(table)} == {len(columns)}


def test_terms_stand_below_the_scores():
    _, text = _latex(3)
    accuracy = _environments(text)[0]
    assert r"Terms: dataset rotated\_digits; protocol shiftproof; trials 3;" in accuracy
    assert "runs finished 9 of 9." in accuracy
    assert r"$\pm$ is the standard error over trials." in accuracy
    assert text.count("Terms:") == 1


def test_bold_is_what_the_intervals_tell_apart():
    results, text = _latex(3)
    assert build_tables(results)[0].rows[1].mean.score.mean == pytest.approx(0.71)
    table = _environments(text)[0]
    rows = {row[0]: row[1:-2] for row in _rows(table)[1:]}
    assert rows["erm + adam"] == [r"\textbf{71.0 $\pm$ 0.6}"] * 2
    assert rows["erm + sgd"] == [r"61.0 $\pm$ 0.6"] * 2
    assert MARK_NOTE.replace("%", r"\%") in table
    assert "**71.0 ± 0.6**" in as_markdown(results)
    assert MARK_NOTE in as_markdown(results)
    _, close = _latex(3, {"sgd": (0.70, 0.72, 0.71), "adam": (0.72, 0.70, 0.74)})
    assert r"\textbf" not in close
    assert "Bold" not in close


def test_one_trial_has_neither_an_error_nor_bold():
    _, text = _latex(1)
    table = _environments(text)[0]
    assert [row[1] for row in _rows(table)[1:4]] == ["60.0", "70.0", "50.0"]
    assert r"\pm" not in text
    assert r"\textbf" not in text


def test_negative_numbers_have_a_minus_and_what_is_not_known_a_dash():
    _, text = _latex(1)
    [genie] = [row for row in _rows(_environments(text)[1]) if row[0] == "erm + genie"]
    assert genie[1:3] == ["$-$10.0", "--"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_tex_reads_it(tmp_path):
    _, text = _latex(3, datasets=("rotated_digits", "colored_digits"))
    page = "\n".join([r"\documentclass{article}", r"\usepackage{booktabs, graphicx}", r"\begin{document}", text])
    (tmp_path / "page.tex").write_text(page + "\n\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
