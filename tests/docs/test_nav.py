"""The navigation lists the pages of a folder by itself."""

from benchmarks.site_nav import with_folders


def test_a_folder_stands_for_its_pages_that_are_not_named_elsewhere(tmp_path):
    for name, heading in (("b", "Apples"), ("a", "Bananas"), ("index", "Results"), ("first", "Zebras")):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{name}.md").write_text(f"<!-- x -->\n\n# {heading}\n", encoding="utf-8")
    nav = ["index.md", {"Results": ["results/first.md", "results/"]}, {"None yet": "benchmarks/"}]
    assert with_folders(nav, tmp_path) == [
        "index.md",
        {"Results": ["results/first.md", "results/index.md", "results/b.md", "results/a.md"]},
    ]
