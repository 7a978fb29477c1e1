"""A legacy practice-management system with opinions, an honest memory and faults on demand.

For the demo and the tests: the place where mapped records end up, and the witness of what was really written and
when. It never imports the service and never calls anybody; it is no example of how an API should be.

    python -m deploy.sandbox.clinic --port 0 --db var/clinic.db --ready-file var/clinic.url [--api-key clinic-key]

How it starts, remembers, ends and fails on demand, and its control plane under `/sandbox`: `deploy/sandbox/witness`.
The base URL in the ready file is without `/api`.

# The API (`/api`)

Header `X-Api-Key` on every request, else `401 {"error": {"code": "unauthorized"}}`. JSON in, JSON out. A record is
answered as `{"data": {…}}`, a list as `{"data": […], "total": n}`, an error as
`{"error": {"code": …, "message": …, "fields": {…}}}` (`message` and `fields` only where there is something to say).
Records are answered whole, unset fields as `null`.

| request | answers |
|---|---|
| `GET /api/ping` | 200 `{"data": "pong"}`: the harmless probe (it wants the key) |
| `POST /api/providers` | 201; key `id` (int from 1). 409 `duplicate` when an active provider has that npi |
| `GET /api/providers?npi=` | 200, list |
| `GET /api/providers/{id}` | 200 (inactive ones too) · 404 `not_found` |
| `PUT /api/providers/{id}` | 200 · 404 · 409 `inactive` · 409 `duplicate` |
| `DELETE /api/providers/{id}` | 204, the record is now `"status": "inactive"`; again: 204 · never there: 404 |
| `POST /api/patients` | 201; **two keys**: `number` (int from 4701) and `uuid` |
| `GET /api/patients?last_name=&birth_date=&external_id=` | 200, list |
| `GET /api/patients/{uuid}` | 200 (inactive ones too) · 404 |
| `PUT /api/patients/{uuid}` | 200 · 404 · 409 `inactive` |
| `DELETE /api/patients/{uuid}` | 200 with the record, now `"status": "inactive"`; again: 404 |
| `POST /api/patients/{uuid}/reactivate` | 200 with the record, active again; is active: 200, nothing is done · 404 |
| `POST /api/patients/{uuid}/problems` | 201; key `id` (int from 1, over all patients) · 404 · 409 `inactive` |
| `GET /api/patients/{uuid}/problems` | 200, list: all of them, not paged, no filters |
| `GET /api/patients/{uuid}/problems/{id}` | 200 · 404 |
| `PUT /api/patients/{uuid}/problems/{id}` | 200 · 404 · 409 `inactive` (the patient is) |
| `DELETE /api/patients/{uuid}/problems/{id}` | 204, the row is gone; **again: 400 `unknown_problem`** |
| `POST /api/patients/{uuid}/visits` | 201; key `id` (int from 1) · 404 · 409 `inactive` |
| `GET /api/patients/{uuid}/visits?external_id=&status=` | 200, list |
| `GET /api/patients/{uuid}/visits/{id}` | 200 · 404 |
| `PUT /api/patients/{uuid}/visits/{id}` | 200, closed ones too · 404 · 409 `inactive` |
| `DELETE /api/patients/{uuid}/visits/{id}` | **405 `method`: a visit is never deleted**, at most `closed` |
| `POST /api/patients/{uuid}/prescriptions` | 201; key `id` · 404 · 409 `inactive` · **409 `duplicate`** (below) |
| `GET /api/patients/{uuid}/prescriptions?rxnorm=&drug=&status=` | 200, list, void ones too |
| `GET /api/patients/{uuid}/prescriptions/{id}` | 200, void ones too · 404 |
| `PUT /api/patients/{uuid}/prescriptions/{id}` | **405 `method`: what was signed is voided and written anew** |
| `DELETE /api/patients/{uuid}/prescriptions/{id}` | 200 with the record, now `void`; again: 410 `void` · 404 |
| `POST /api/patients/{uuid}/vitals` | 201; key `id`; one row for each measurement · 404 · 409 `inactive` |
| `GET /api/patients/{uuid}/vitals?code=&taken_at=` | 200, list |
| `GET /api/patients/{uuid}/vitals/{id}` | 200 · 404 |
| `PUT /api/patients/{uuid}/vitals/{id}` | 200 · 404 · 409 `inactive` |
| `DELETE /api/patients/{uuid}/vitals/{id}` | 204, the row is gone; again: 404 |
| `POST /api/appointments` | 201; key `id`; the patient is in the body · 409 `inactive` (the patient is) |
| `GET /api/appointments?patient_number=&external_id=&starts=&status=` | 200, list, cancelled ones too |
| `GET /api/appointments/{id}` | 200, cancelled ones too · 404 |
| `PUT /api/appointments/{id}` | 200 · 404 · 409 `inactive` (but cancelling goes) |
| `DELETE /api/appointments/{id}` | **405 `method`: cancelled by `{"status": "cancelled"}`**, booked again by `booked` |

Paths want the patient's *uuid*; answers about what is under a patient, and the body of an appointment, name the patient
by `patient_number`. Another patient's problem, visit, prescription or vital is an unknown one.

## Fields (`*` = required)

| record | field | accepted |
|---|---|---|
| provider | last_name*, first_name* | text, 60 |
| | npi | 10 digits |
| | title | text, 20 |
| | external_ref | text, 36 |
| patient | last_name*, first_name, middle_name | text, 60 |
| | birth_date, deceased_on | `MM/DD/YYYY` |
| | sex* | `F M O U` |
| | phone_home, phone_mobile | `###-###-####` |
| | email | text with an `@`, 100 |
| | street, city | text, 80 and 40 |
| | state | two letters of the post's list (states, DC, territories, armed forces) |
| | zip | `12345` or `12345-6789` |
| | marital | `SNG MAR DIV WDW SEP UNK` |
| | provider_id | int of an existing provider |
| | external_id | text, 36 (the FHIR id) |
| problem | title* | text, 200 |
| | icd10 | `ICD10:E11.9` |
| | onset*, ended | `MM/DD/YYYY` |
| | status | `active` (default) or `ended` |
| visit | started*, ended | `MM/DD/YYYY hh:mm AM`, the clinic's wall clock, no zone |
| | kind* | `OFFICE PHONE VIDEO HOME HOSPITAL` |
| | reason | text, 200 |
| | provider_id | int of an existing provider |
| | status | `open` (default) or `closed` |
| | external_id | text, 36 |
| appointment | patient_number* | int of an existing patient; a PUT moves it |
| | provider_id | int of an existing provider |
| | starts* | `MM/DD/YYYY hh:mm AM`, the clinic's wall clock, no zone |
| | minutes* | int, 1 to 1440 |
| | reason | text, 200 |
| | status | `booked` (default), `arrived`, `noshow`, `cancelled` |
| | external_id | text, 36 |
| prescription | drug* | text, 200 |
| | rxnorm | up to 8 digits, as text |
| | sig | text, 200 |
| | quantity | number, 0 to 100000 |
| | refills | int, 0 to 99 |
| | written_on* | `MM/DD/YYYY` |
| | provider_id | int of an existing provider |
| | status | `active` (default) or `ended` |
| vital | code* | `BP_SYS BP_DIA PULSE TEMP WEIGHT HEIGHT SPO2` |
| | value* | number, 0 to 1000 |
| | unit* | `mmHg` `/min` `C` `F` `kg` `lb` `cm` `in` `%` |
| | taken_at* | `MM/DD/YYYY hh:mm AM`, the clinic's wall clock, no zone |

Besides: `id` · `number`, `uuid` · `id`, `patient_number`, and `status` (`active`, `inactive`) of provider and patient.
These are the clinic's own; they may come along in a body and are ignored there. Any other unknown field is a 422.

## Opinions

- PUT changes what is sent and leaves what is not. `null` clears, except `email`: there `null` is silently ignored and
  `""` clears. `""` anywhere else is a 422, so is `null` for a required field. On create `null` is the same as absent.
- A lookup knows its filters (those in the table; `last_name` without regard to case) and **ignores
  unknown and empty ones: then everything comes back**. Paged by `page` (from 1) and `per_page` (25, at most 50; more is
  silently 50), in order of the key; `total` counts all hits. Inactive providers and patients are not found by lookups;
  cancelled appointments and void prescriptions are, unless `status` says otherwise.
- Duplicates are silently made: neither `external_id` nor `external_ref` is unique. Only a provider's npi is:
  `409 {"error": {"code": "duplicate", "message": "exists: <the other provider's name>"}}`.
- One active prescription of each drug for a patient: a second one, equal in `rxnorm` (without one: in `drug`), is
  `409 {"error": {"code": "duplicate", "message": "Doe, Jane has <drug>: prescription <id>"}}`. So the old one is voided
  first, and in between the patient has none.
- Errors echo values, with the patient's name:
  `422 {"error": {"code": "invalid", "message": "marital: 'WID' is not one of SNG, MAR, … for Doe, Jane",
  "fields": {"marital": "'WID' is not one of SNG, MAR, … for Doe, Jane"}}}`. A body that is no JSON object is
  `400 {"error": {"code": "malformed", "message": "cannot read: <the beginning of the body>"}}`.
- No ETag, no version, no `updated_at`. `Idempotency-Key` is noted in the journal and otherwise ignored.
- Keys come again after a restore: the numbers go back to the snapshot's, uuids do not.

# What the control plane tells

Records are named `provider/3`, `patient/4701` (its number), `problem/17`, `visit/1`, `appointment/1`,
`prescription/1`, `vital/1`. `external_id` is a provider's `external_ref` too. Records are the same if their
`external_id` is equal; problems: patient, title, icd10 and onset; prescriptions: patient, drug, rxnorm and written_on;
vitals: patient, code, taken_at and value. `inactive`, `cancelled` and `void` ones stand there as deleted: no copy.
"""
