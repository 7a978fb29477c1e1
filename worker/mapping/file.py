"""An attachment as a value of a mapping: which Binary of our Medplum it names. Pure; it fetches nothing.

The URL of an attachment is foreign text. Nothing is ever fetched from it: only the id of a Binary is taken out of it,
and that Binary is read from our own Medplum, with what our client may read there.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worker.errors import Unmappable
from worker.legacy.file import File
from worker.medplum.resource import presigned

if TYPE_CHECKING:
    from fhir.resources.R4B.attachment import Attachment

_ID = r"(?!\.+(?:/|$))[A-Za-z0-9.-]{1,64}"
_NAMED = re.compile(rf"(https?://[^/?#]+/(?:[^?#]*/)?)?Binary/({_ID})(?:/_history/({_ID}))?")
_STORED = re.compile(rf"(?:.*/)?(?:storage|binary)/({_ID})(?:/({_ID}))?")


def file(attachment: Attachment | None) -> File | None:
    """Return the content of an attachment as a value: base64 in the body, read from Medplum when it is sent.

    A presigned URL names the Binary and its version in its path, as Medplum sends it (notifications 025 to 027).

    Raises:
        Unmappable: it has neither content nor the URL of a Binary. An absolute reference is judged by the engine, which
            knows our Medplum.
    """
    if attachment is None:
        return None
    if attachment.data:
        return File(data=base64.b64encode(attachment.data).decode())  # the models hold the bytes themselves
    url = str(attachment.url or "")
    if named := _NAMED.fullmatch(url):
        return File(named[2], named[3] or "", base=named[1] or "")
    stored = _STORED.fullmatch(urlsplit(url).path) if presigned(url) else None
    if stored is None:
        raise Unmappable("an attachment without content, or with a URL that is none of Medplum's Binary")
    return File(stored[1], stored[2] or "")
