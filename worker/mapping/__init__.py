"""What people write mappings with: routes, results, links, the context, tables and pickers. Pure.

It never calls anybody, runs no SQL, and lets no value of a resource into a message.
"""

from worker.errors import Unmappable
from worker.ledger.values import Phase
from worker.legacy import File, Unsupported
from worker.mapping import pick
from worker.mapping.context import Context
from worker.mapping.file import file
from worker.mapping.link import Link, link
from worker.mapping.part import Part, Parts, part_of
from worker.mapping.results import Absent, Fields, Mapped, MappedRecord, Record, Result, Skip, Value
from worker.mapping.route import Conflict, Declared, Route, Routes, WriteBack, apply, load_routes, route
from worker.mapping.site import SiteSettings
from worker.mapping.tables import US_STATES, Table
from worker.mapping.text import Phone, first, join, prefix, required, rest

__all__ = [
    "US_STATES",
    "Absent",
    "Conflict",
    "Context",
    "Declared",
    "Fields",
    "File",
    "Link",
    "Mapped",
    "MappedRecord",
    "Part",
    "Parts",
    "Phase",
    "Phone",
    "Record",
    "Result",
    "Route",
    "Routes",
    "SiteSettings",
    "Skip",
    "Table",
    "Unmappable",
    "Unsupported",
    "Value",
    "WriteBack",
    "apply",
    "file",
    "first",
    "join",
    "link",
    "load_routes",
    "part_of",
    "pick",
    "prefix",
    "required",
    "rest",
    "route",
]
