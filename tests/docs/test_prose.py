"""A page is short enough to be read."""

import pytest

from docs.pages import PAGES, name, words_of_prose

MOST_WORDS = 1500


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_a_page_has_at_most_1500_words_of_prose(page):
    assert words_of_prose(page.read_text(encoding="utf-8")) <= MOST_WORDS


def test_code_tables_and_comments_are_not_prose():
    page = (
        "# One two\n\n<!-- a\nb -->\n\n    code here\n\nthree\n\n| a | b |\n|---|---|\n\n```python\nx = 1\n```\nfour\n"
    )
    assert words_of_prose(page) == 5  # with the sign of the heading
