"""The public names of the two rooms, and what importing them may bring along."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import worker.legacy
import worker.mapping

WORKER = Path(worker.legacy.__file__).parents[1]


@pytest.mark.parametrize("room", [worker.legacy, worker.mapping], ids=lambda room: str(room.__name__))
def test_every_public_name_is_there_once(room: object) -> None:
    """`__all__` is sorted, without doubles, and true."""
    names: list[str] = getattr(room, "__all__")  # noqa: B009 — a module's
    assert len(set(names)) == len(names)
    assert all(hasattr(room, name) for name in names)


@pytest.mark.parametrize("path", sorted((WORKER / "mapping").glob("*.py")), ids=lambda path: str(path.stem))
def test_mapping_calls_nobody(path: Path) -> None:
    """No module of the mapping room imports HTTP, SQL, the queue or the ledger's verbs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in imported} & {"httpx", "sqlalchemy", "celery", "redis", "webhook"}
    assert not {name for name in imported if name.startswith("worker.ledger") and name != "worker.ledger.values"}
