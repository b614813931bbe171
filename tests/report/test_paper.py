"""The list of contents changes with the numbers."""

from pathlib import Path

from tunediff.report.paper import CONTENTS, contents, write_contents


def test_one_line_per_figure_that_changes_with_its_numbers(tmp_path: Path) -> None:
    files = [tmp_path / "figures/fig4.csv", tmp_path / "tables/new.csv"]
    for path in files:
        path.parent.mkdir()
        path.write_text("a,b\n1,2\n3,4\n")
    before = contents(files).splitlines()
    assert len(before) == 2
    assert before[0].startswith(f"figures/fig4.pdf .png .csv | {CONTENTS['figures/fig4']} | 2 rows")
    files[1].write_text("a,b\n1,2\n3,5\n")
    after = contents(files).splitlines()
    assert before[0] == after[0] and before[1] != after[1]
    write_contents(files, tmp_path / "paper.txt")
    assert (tmp_path / "paper.txt").read_text() == contents(files)
