"""The source: reads and searches of Medplum, and what its resources are. It writes identifiers, and Subscriptions.

`worker.medplum.resource` is not imported here: the models cost half a second and 45 MB, and only who maps needs them.
"""

from __future__ import annotations

from worker.medplum.client import Medplum, SearchPage
from worker.medplum.patching import Identified, Put
from worker.medplum.quota import Priority
from worker.medplum.reads import Absent, Deleted, Present, Read

__all__ = ["Absent", "Deleted", "Identified", "Medplum", "Present", "Priority", "Put", "Read", "SearchPage"]
