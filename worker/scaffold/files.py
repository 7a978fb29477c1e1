"""The files of a new mapping: the module, a fixture pair and its test. Never writes over one that is there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import RoutesInvalid
from worker.legacy import LegacyApi
from worker.scaffold.elements import Elements
from worker.scaffold.elements import Path as ElementPath
from worker.scaffold.synthetic import kind, made_up

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

SHOWN = 40
KEYWORDS = {"class": "class_fhir", "for": "for_fhir", "import": "import_fhir", "assert": "assert_fhir"}

MODULE = '''\
"""{type} → the legacy system's {word}s. TODO: say in one line what of it is kept."""

from worker.legacy import Unsupported
from worker.mapping import Context, Phase, Result, route
from worker.mapping.r4 import {type}
from {api_module} import {api}

{word}s = {api}.collection(
    "{word}",
    keys=("id",),
    create="POST /{word}s",  # TODO: the requests, as the API's own pages name them
    read="GET /{word}s/{{id}}",
    update="PUT /{word}s/{{id}}",
    delete="DELETE /{word}s/{{id}}",
    find=Unsupported("TODO: Find(…), or why a record cannot be looked up"),
)


@route({type}, to={word}s, phase=Phase.SHADOW)
def {word}({letter}: {type}, ctx: Context) -> Result:
    # What {looked_at} resources carry, and how it is read; the left side is the API's own name for it.
    return {{
        "external_id": ctx.fhir_id,
{fields}
    }}
'''

TEST = '''\
"""{type} resources beside what they map to."""

from worker.mapping.pairs import pairs
from {module} import {word}

test_{word} = pairs({word}, "{word}")
'''


@dataclass(frozen=True, slots=True)
class Beginning:
    """A new mapping's files by where they go."""

    files: Mapping[Path, str]

    def write(self) -> None:
        """Write all of them, or none.

        Raises:
            RoutesInvalid: one is there already.
        """
        there = [str(path) for path in self.files if path.exists()]
        if there:
            raise RoutesInvalid(f"{', '.join(there)}: is there already, and is not written over")
        for path, text in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def begin(routes: str, model: type[FHIRAbstractModel], elements: Elements, *, tests: Path) -> Beginning:
    """Compose the beginning of a mapping for a resource type.

    Args:
        routes: the package of the mappings, as REVERSE_SYNC_ROUTES names it.
        model: the R4 model of the type.
        elements: what its resources carry.
        tests: the folder where test and fixtures go.

    Raises:
        RoutesInvalid: the name is no package's, or declares no LegacyApi that the collection could be of.
    """
    package = importlib.import_module(routes)
    folder = getattr(package, "__path__", None)
    if not folder:
        raise RoutesInvalid(f"{routes} is one module: make it a package, so that each type has a file of its own")
    api_module, api = _api(routes)
    name = str(model.get_resource_type())
    word = _snake(name)
    about = {"type": name, "word": word, "letter": word[0], "api": api, "api_module": api_module}
    fields = "\n".join(_line(model, path, elements, word[0]) for path in elements.leaves[:SHOWN])
    module = MODULE.format(**about, looked_at=elements.looked_at, fields=fields or "        # none were found")
    fixture = json.dumps(made_up(model, elements.leaves), indent=2, ensure_ascii=False)
    expected = [{"record": word, "fields": {"external_id": "example"}}]
    return Beginning(
        {
            Path(folder[0]) / f"{word}.py": module,
            tests / f"test_{word}.py": TEST.format(type=name, word=word, module=f"{routes}.{word}"),
            tests / word / "example.fhir.json": fixture + "\n",
            tests / word / "example.legacy.json": json.dumps(expected, indent=2) + "\n",
        }
    )


def _api(routes: str) -> tuple[str, str]:
    """Find the API that the package's other mappings write to, and what it is called there."""
    for name, module in sorted(sys.modules.items()):
        if name == routes or name.startswith(f"{routes}."):
            for variable, value in vars(module).items():
                if isinstance(value, LegacyApi):
                    return name, variable
    raise RoutesInvalid(f"{routes} declares no LegacyApi yet: begin with that, see docs/legacy-api.md")


def _line(model: type[FHIRAbstractModel], path: ElementPath, elements: Elements, letter: str) -> str:
    return f"        # {elements.share(path):3} %  {'.'.join(path)}: {_reading(model, path, letter)}"


def _reading(model: type[FHIRAbstractModel], path: ElementPath, letter: str) -> str:
    """Say how an element is read: by the toolkit where there is a function for its type."""
    top = f"{letter}.{KEYWORDS.get(path[0], path[0])}"
    outer, inner = kind(model, path[:1]), kind(model, path)
    if inner in {"Date", "DateTime", "Instant"} and len(path) == 1:
        return f"ctx.{'date' if inner == 'Date' else 'datetime'}({top})"
    by_type = {
        "HumanName": f"pick.name({top}, at=ctx.updated)",
        "Address": f"pick.address({top}, at=ctx.updated)",
        "ContactPoint": f'pick.telecom({top}, "phone", at=ctx.updated)',
        "Identifier": f'pick.identifier({top}, system="…")',
        "CodeableConcept": f"pick.code({top}) or pick.text({top})",
        "Reference": f'link({top}, "id")',
    }
    return by_type.get(outer, top if len(path) == 1 else f"within {top}")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
