"""What a type checker says of the mistakes that people make in mappings: each of them, where it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MISUSES = Path(__file__).with_name("misuse.py")
EXPECTED = re.compile(r"  # type: ignore\[([a-z-]+)\]$")


@pytest.mark.timeout(300)  # without mypy's cache it takes long
def test_every_misuse_is_reported_where_it_stands(tmp_path: Path) -> None:
    """No delete or match stated, another type, a concept or a float as a value, an optional not looked at, no result.

    The comments that let the file pass elsewhere are taken off: what is reported is what they name, line by line.
    """
    lines = MISUSES.read_text(encoding="utf-8").splitlines()
    expected = {(number, found[1]) for number, line in enumerate(lines, 1) if (found := EXPECTED.search(line))}
    bare = tmp_path / "misuse.py"
    bare.write_text("\n".join(EXPECTED.sub("", line) for line in lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", "--no-error-summary", str(bare)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    said = re.findall(r"misuse\.py:(\d+): error: .*\[([a-z-]+)\]$", checked.stdout, re.MULTILINE)
    assert {(int(line), code) for line, code in said} == expected, checked.stdout + checked.stderr
    assert len(expected) == 7
