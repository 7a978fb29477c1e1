"""The field guide to FHIR says what is so: each of its examples is run, with real models and the real toolkit."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "fhir-field-guide.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#([\w-]+))?\)")


def sections(page: str) -> dict[str, str]:
    """Return the text of each section by its heading."""
    title, *parts = re.split(r"^## ", page, flags=re.MULTILINE)
    return {"": title} | {part.partition("\n")[0]: part for part in parts}


def run(text: str, names: dict[str, Any], name: str) -> str:
    """Run the examples of a text's blocks, defining names; return what doctest has against them, "" for nothing."""
    complaints: list[str] = []
    blocks = "\n".join(block for _, block in FENCE.findall(text))
    test = doctest.DocTestParser().get_doctest(blocks, names, name, str(GUIDE), 0)
    doctest.DocTestRunner(verbose=False).run(test, out=complaints.append, clear_globs=False)
    names.update(test.globs)  # a DocTest takes a copy
    return "".join(complaints)


PAGE = sections(GUIDE.read_text(encoding="utf-8"))


@pytest.fixture
def names() -> dict[str, Any]:
    """What the lines at the top of the guide define."""
    defined: dict[str, Any] = {"__name__": "guide"}
    assert run(PAGE[""], defined, "top") == ""
    return defined


@pytest.mark.parametrize("heading", [heading for heading, text in PAGE.items() if heading and FENCE.search(text)])
def test_every_example_of_the_guide_is_so(heading: str, names: dict[str, Any]) -> None:
    """Each section's examples, run alone after the lines at the top, give what the page says."""
    assert run(PAGE[heading], names, heading) == ""


def test_every_block_of_the_guide_is_python_with_an_expected_answer() -> None:
    """No block is passed over: each is Python written as a session, and only the first expects no answer."""
    languages, blocks = zip(*FENCE.findall(GUIDE.read_text(encoding="utf-8")), strict=True)
    examples = [doctest.DocTestParser().get_examples(block) for block in blocks]
    assert set(languages) == {"python"}
    assert [any(example.want for example in block) for block in examples] == [False] + [True] * (len(blocks) - 1)
    assert all(block.startswith(">>> ") for block in blocks)


def test_a_wrong_example_would_be_found(names: dict[str, Any]) -> None:
    """An answer that is not so is a complaint, and so is an error that the page does not expect."""
    assert "Expected" in run("```python\n>>> join('a', None)\n'a '\n```\n", names, "wrong")
    assert "Unmappable" in run("```python\n>>> required(None)\n```\n", names, "raises")


def test_every_link_of_the_guide_leads_somewhere() -> None:
    """Pages that the guide names exist, and have the headings that it names."""
    links = LINK.findall(GUIDE.read_text(encoding="utf-8"))
    assert links
    for page, heading in links:
        text = (GUIDE.parent / page).read_text(encoding="utf-8")
        headings = {line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
        assert not heading or heading in headings
