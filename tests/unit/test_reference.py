"""The generated pages say what the code says."""

from pathlib import Path

import pytest

from treadle.cli.reference import PAGES

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_up_to_date(name: str) -> None:
    made = PAGES[name]()
    assert (FOLDER / name).read_text() == made, (
        "run: python -m treadle.cli.reference docs/reference"
    )


def test_no_page_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)
