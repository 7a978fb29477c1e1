"""Which line of a mapping failed, in its own source: that holds no patient's value, and it is the line to mend."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

_LINE_MAX = 160

Function = Callable[..., Any]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a mapping: the key of its dict ("" outside of one), dotted where they are nested, and the source."""

    field: str = ""
    line: str = ""


def of_failure(function: Function, trace: TracebackType | None) -> Place:
    """Find the place in the mapping's module that an exception came through last."""
    path = function.__code__.co_filename
    spans = [_span(code, instruction) for code, instruction in _frames(trace) if code.co_filename == path]
    places = [_at(path, span) for span in reversed(spans)]
    if not places:
        return Place(line=f"def {function.__name__}(…)")
    return Place(next((place.field for place in places if place.field), ""), places[0].line)


def of_field(function: Function, name: str) -> Place:
    """Find where a mapping returns a field; nowhere, if it makes the name itself: that can be of the resource."""
    path, first_line = function.__code__.co_filename, function.__code__.co_firstlineno
    fields = [(key, value) for key, value, _ in _items(_tree(path)) if key == name]
    after = [(key, value) for key, value in fields if value.lineno >= first_line]
    return Place(name, _line(path, *(after or fields)[0])) if fields else Place()


def keys_in(function: Function) -> frozenset[str] | None:
    """Return all keys of a module's dicts, declarations aside; None where they are not all written there."""
    tree = _tree(function.__code__.co_filename)
    declared = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in {"clear", "match"}
    }
    dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict) and id(node) not in declared]
    if any(key is None for node in dicts for key in node.keys):
        return None
    return frozenset(key for node in dicts for key, _, _ in _pairs(node))


def source(function: Function) -> str:
    """Return the source of a mapping's module, as it was when it was first asked for."""
    return _source(function.__code__.co_filename)


def _frames(trace: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lasti
        trace = trace.tb_next


def _span(code: CodeType, instruction: int) -> Span:
    """Return line and column (in bytes, as the syntax tree counts) of an instruction."""
    line, _, column, _ = next(islice(code.co_positions(), instruction // 2, None), (None, None, None, None))
    return line or code.co_firstlineno, column or 0


def _at(path: str, span: Span) -> Place:
    around = [(key, value) for key, value, start in _items(_tree(path)) if start <= span <= _end(value)]
    around.sort(key=lambda item: (item[1].lineno, item[1].col_offset))
    if not around:
        return Place(line=_shown(_statement(path, span)))
    return Place(".".join(key for key, _ in around), _line(path, *around[-1]))


def _items(tree: ast.AST) -> Iterator[tuple[str, ast.expr, Span]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from _pairs(node)


def _pairs(node: ast.Dict) -> Iterator[tuple[str, ast.expr, Span]]:
    """Yield each constant key of a dict, its value, and where the pair begins."""
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value, value, (key.lineno, key.col_offset)


def _end(node: ast.expr) -> Span:
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


def _line(path: str, key: str, value: ast.expr) -> str:
    return _shown(f"{key} = {ast.get_source_segment(_source(path), value) or '…'}")


def _statement(path: str, span: Span) -> str:
    lines = _source(path).splitlines()
    return lines[span[0] - 1] if span[0] <= len(lines) else ""


def _shown(source: str) -> str:
    line = " ".join(source.split())
    return line if len(line) <= _LINE_MAX else line[: _LINE_MAX - 1] + "…"


@cache
def _tree(path: str) -> ast.Module:
    try:
        return ast.parse(_source(path))
    except (SyntaxError, ValueError):
        return ast.Module([], [])


@cache
def _source(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # compiled without its source: places stay empty
