"""Pages that are written from code are those of today's code."""

from benchmarks.command_line_page import PAGE, page


def test_the_page_of_the_command_line_is_that_of_the_parser():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.command_line_page"
