"""Names of any characters in the tables of a study, format by format."""

import csv
import io
import re
from dataclasses import replace

import pytest

from made_up import results_of
from shiftproof.data import DATASETS
from shiftproof.data.dataset import DatasetEntry
from shiftproof.studies import Study, Variant, make_plan
from shiftproof.tables import FORMATS
from shiftproof.tables.markup import latex, markdown, one_line

NAMES = ("<script>x</script>", "*b* **c**", "a|b", "new\nline", "$x_1$ & {c}", "_[d](e)_\x1b[0m")
VARIANT = "`v` | \\w\r\n~z~ &lt; 5%"


@pytest.fixture(scope="module")
def results():
    digits = DATASETS["rotated_digits"].open(None, None)
    domains = tuple(replace(domain, name=name) for domain, name in zip(digits.domains, NAMES, strict=True))
    odd = replace(digits, name=" <odd>\nset", domains=domains)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(DATASETS._entries, odd.name, DatasetEntry(lambda *_: odd, "small_images"))
        study = Study(datasets=(odd.name,), optimizers=("sgd", "adam"), variants=(Variant(VARIANT),), trials=1)
        plan = make_plan(study)
    failed = plan.distinct[0]
    return results_of(plan, lambda spec: (0.5, 0.25, 0.75), lambda spec: "failed" if spec is failed else "finished")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rotated_digits on training_domain", "rotated_digits on training_domain"),
        ("[+0.1, -0.2] <0.001 52.1 ± 0.3 A & B", "[+0.1, -0.2] <0.001 52.1 ± 0.3 A & B"),
        ("<script>a</script><!-- b -->", "&lt;script>a&lt;/script>&lt;!-- b -->"),
        ("*b* **c** _d_ __e__", r"\*b\* \*\*c\*\* \_d\_ \_\_e\_\_"),
        ("a|b `c` ~~d~~ $e$ \\f", r"a\|b \`c\` \~\~d\~\~ \$e\$ \\f"),
        ("[a](b) [c][d] &amp; &#42;", r"[a\](b) [c\][d] &amp;amp; &amp;#42;"),
        ("new\nline\r\n\ttab \x1b[31m \udcff", "new line   tab \\\\x1b[31m \\\\udcff"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text, expected):
    assert markdown(text) == expected


def test_latex_shows_a_text_as_it_is():
    assert latex("a_b & 5% #1 {c} \\d <e> |f| ~g^ $h$ ±\n\n") == (
        r"a\_b \& 5\% \#1 \{c\} \textbackslash{}d $<$e$>$ \textbar{}f\textbar{} \textasciitilde{}g\textasciicircum{} "
        r"\$h\$ $\pm$  "
    )


def test_a_line_is_one_and_can_be_printed():
    assert one_line("a\nb\x1b[0m\u202e 写真 ± \udcff") == "a b\\x1b[0m\\u202e 写真 ± \\udcff"


def test_a_markdown_table_has_one_line_and_all_cells_per_row(results):
    lines = FORMATS["markdown"](results, None, None).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    [head, rule, first, second] = tables[:4]
    for line in (head, rule, first, second):
        assert len(re.findall(r"(?<!\\)\|", line)) == 1 + 1 + len(NAMES) + 4
    for name in NAMES:
        assert f" {markdown(name)} |" in head
    assert first.startswith(f"| erm + sgd, {markdown(VARIANT)} |")
    assert lines[0] == "**&lt;odd> set: accuracy on unseen domains, %**"
    assert not any("<script" in line or "\x1b" in line for line in lines)


def test_a_latex_table_has_one_line_per_row_and_no_end_of_a_comment(results):
    lines = FORMATS["latex"](results, None, None).splitlines()
    head = next(line for line in lines if line.startswith("method &"))
    assert head.endswith(r" \\")
    assert len(re.findall(r"(?<!\\)&", head)) == len(NAMES) + 4
    allowed = ("\\", "%", "erm +", "method &")  # commands, comments and rows
    assert [line for line in lines if line and not line.startswith(allowed)] == []


def test_a_table_of_text_has_one_line_per_row(results):
    lines = FORMATS["text"](results, None, None).splitlines()
    assert lines[0] == " <odd> set: accuracy on unseen domains, %"
    assert len({len(line) for line in lines[1:4]}) == 1
    for name in NAMES:
        assert one_line(name) in lines[1]


def test_csv_holds_names_as_they_are(results):
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](results, None, None), newline="")))
    assert {row["target"] for row in rows} == {*NAMES, "mean", "worst"}
    assert {row["variant"] for row in rows} == {VARIANT}
    assert {row["table"] for row in rows} == {" <odd>\nset"}
