"""Settings of one site that a module of mappings needs: its API's address, its keys, its constants.

Read from `REVERSE_SYNC_SITE_<PREFIX>_<NAME>`, or from the file that `…_FILE` names, when that module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.errors import SettingsInvalid

_PREFIX = "REVERSE_SYNC_SITE_"


class SiteSettings(BaseModel):
    """Inherit, set `prefix`, and declare one typed attribute for each setting."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    prefix: ClassVar[str]

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the site's settings.

        Raises:
            SettingsInvalid: names each variable that is missing, unknown, doubled or wrong; never a value.
        """
        environ = os.environ if environ is None else environ
        start = f"{_PREFIX}{cls.prefix}_"
        given = {name: environ[name] for name in sorted(environ) if name.startswith(start) and environ[name]}
        values: dict[str, str] = {}
        problems: list[str] = []
        for variable, text in given.items():
            name = variable.removeprefix(start).removesuffix("_FILE").lower()
            if name not in cls.model_fields:
                problems.append(f"{variable} is not a setting of this site")
            elif name in values:
                problems.append(f"{start}{name.upper()} and {start}{name.upper()}_FILE are both set: keep one")
            else:
                values[name] = _content(variable, text, problems) if variable.endswith("_FILE") else text
        problems += [f"{start}{name.upper()} {what}" for name, what in _wrong(cls, values)]
        if problems:
            raise SettingsInvalid("\n".join(problems))
        return cls.model_validate(values)


def _content(variable: str, path: str, problems: list[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        problems.append(f"{variable} names a file that cannot be read as text")
        return ""


def _wrong(cls: type[SiteSettings], values: Mapping[str, str]) -> list[tuple[str, str]]:
    try:
        cls.model_validate(values)
    except ValidationError as error:
        entries = [
            (str(entry["loc"][0]), entry["type"]) for entry in error.errors(include_input=False, include_url=False)
        ]
        return [(name, "is missing" if kind == "missing" else "cannot be used") for name, kind in entries]
    return []
