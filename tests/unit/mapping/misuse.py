"""Mistakes that a type checker must report: mypy fails over this file as soon as one of them passes. Never run."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from worker.legacy import Find, LegacyApi, Unsupported
from worker.mapping import Context, Fields, Record, Result, link, required, route
from worker.mapping.r4 import Condition, Patient

api = LegacyApi("clinic", base_url="https://clinic.example.com", auth=None, zone="UTC")
notes = api.collection(
    "note", keys=("id",), create="POST /a", update="PUT /a/{id}", delete="DELETE /a/{id}", find=Unsupported("none")
)


def declarations() -> None:
    """Nobody forgets to say how a record is deleted, or what a hit must equal."""
    api.collection("a", keys=("id",), create="POST /a", update="PUT /a", find=Unsupported("none"))  # type: ignore[call-arg]
    Find("GET /a")  # type: ignore[call-arg]


@route(Condition, to=notes)  # type: ignore[arg-type]
def wrong_type(p: Patient, ctx: Context) -> Result:
    return {}


def concept(c: Condition, ctx: Context) -> Result:
    return {"code": c.code}  # type: ignore[dict-item]


def inexact(c: Condition, ctx: Context) -> Result:
    return {"dose": 1.5}  # type: ignore[dict-item]


def not_looked_at(p: Patient, ctx: Context) -> Result:
    return {"family": p.name[0].family}  # type: ignore[index]


def nothing(p: Patient, ctx: Context) -> Result:
    return None  # type: ignore[return-value]


@route(Patient, to=notes)
def right(p: Patient, ctx: Context) -> Result:
    doctors = [link(doctor, "id") for doctor in p.generalPractitioner or []]
    fields: Fields = {
        "dose": Decimal(1),
        "doctors": doctors,
        "of": {"day": date.today()},
        "born": required(p.birthDate),
    }
    return [Record("a", {**fields, "by": link(p.managingOrganization)}, to=notes)]
