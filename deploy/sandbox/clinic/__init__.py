"""A legacy practice-management system with opinions, an honest memory and faults on demand.

For the demo and the tests: the place where mapped records end up, and the witness of what was really written and
when. It never imports the service and never calls anybody; it is no example of how an API should be.

    python -m deploy.sandbox.clinic --port 0 --db var/clinic.db --ready-file var/clinic.url [--api-key clinic-key]

Port 0 takes a free port; the base URL (`http://127.0.0.1:<port>`, no `/api`) is written to the ready file once requests
are answered. The same port can be taken again at once after a kill. What was answered is on disk before the answer
leaves (SQLite, WAL, synchronous=FULL). SIGTERM ends it at once with exit code 0: calls in flight are cut, late writes
that are not due yet never happen (as in a crash).

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
| `POST /api/patients/{uuid}/problems` | 201; key `id` (int from 1, over all patients) · 404 · 409 `inactive` |
| `GET /api/patients/{uuid}/problems` | 200, list: all of them, not paged, no filters |
| `GET /api/patients/{uuid}/problems/{id}` | 200 · 404 |
| `PUT /api/patients/{uuid}/problems/{id}` | 200 · 404 · 409 `inactive` (the patient is) |
| `DELETE /api/patients/{uuid}/problems/{id}` | 204, the row is gone; **again: 400 `unknown_problem`** |

Paths want the patient's *uuid*; answers about a problem name the patient by `patient_number`. Another patient's problem
is an unknown one.

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

Besides: `id` · `number`, `uuid` · `id`, `patient_number`, and `status` (`active`, `inactive`) of provider and patient.
These are the clinic's own; they may come along in a body and are ignored there. Any other unknown field is a 422.

## Opinions

- PUT changes what is sent and leaves what is not. `null` clears, except `email`: there `null` is silently ignored and
  `""` clears. `""` anywhere else is a 422, so is `null` for a required field. On create `null` is the same as absent.
- A lookup knows its filters (`npi`; `last_name` without regard to case, `birth_date`, `external_id`) and **ignores
  unknown and empty ones: then everything comes back**. Paged by `page` (from 1) and `per_page` (25, at most 50; more is
  silently 50), in order of the key; `total` counts all hits. Inactive records are not found by lookups.
- Duplicates are silently made: neither `external_id` nor `external_ref` is unique. Only a provider's npi is:
  `409 {"error": {"code": "duplicate", "message": "exists: <the other provider's name>"}}`.
- Errors echo values, with the patient's name:
  `422 {"error": {"code": "invalid", "message": "marital: 'WID' is not one of SNG, MAR, … for Doe, Jane",
  "fields": {"marital": "'WID' is not one of SNG, MAR, … for Doe, Jane"}}}`. A body that is no JSON object is
  `400 {"error": {"code": "malformed", "message": "cannot read: <the beginning of the body>"}}`.
- No ETag, no version, no `updated_at`. `Idempotency-Key` is noted in the journal and otherwise ignored.
- Keys come again after a restore: the numbers go back to the snapshot's, uuids do not.
- A request that has arrived is carried out, whether or not the caller still listens.

# The control plane (`/sandbox`, no key, never journalled, never subject to faults)

| request | does |
|---|---|
| `GET /sandbox/journal?since=n` | NDJSON of the API requests with a number above n |
| `GET /sandbox/history?since=n` | NDJSON of the applied changes, in the order in which they took effect |
| `GET /sandbox/records` | NDJSON of all records; `?kind=patient`, `?duplicates=1` (active with a twin) narrow |
| `POST /sandbox/faults` | adds a rule or a list of rules → `{"data": [rules]}`; 422 says what is wrong with one |
| `GET /sandbox/faults` · `DELETE` | lists (with what is left of `times`) · removes all |
| `POST /sandbox/edit` | somebody edits in the clinic's own screens; nothing is checked |
| `POST /sandbox/snapshot` · `restore` | keeps · brings back records and numbers; journal and history go on |
| `POST /sandbox/reset` | empty again: records, numbers, journal, history, snapshots, faults, late writes |

`edit` takes `{"record": "patient/4701", "fields": {…}}`, or `{"record": …, "remove": true}` to take the row away;
`snapshot` and `restore` take `{"name": "…"}` (default `default`).

Journal line: `{"n", "method", "template", "path", "query", "received_at", "applied_at", "idempotency_key", "trace_id",
"record", "body", "outcome", "status", "fault"}`. Times are seconds since 1970 (float); `template` is like
`/api/patients/{uuid}`; `trace_id` is `x-trace-id`, else `traceparent`; `record` is `patient/4701`, `provider/3`,
`problem/17`; `body` is the JSON that came (null if none or unreadable); `status` is what was answered (null: nothing);
`fault` the kind of the rule that was applied. `outcome`: `pending` (has arrived, not carried out yet) · `applied` (a
write was saved) · `read` · `refused` (the clinic said no) · `dropped` (a fault kept it from being carried out).

History line: `{"n", "at", "record", "operation", "journal", "data"}`; operation is `create`, `update`, `delete`,
`edit`, `remove` or `restore` (record null), `journal` the number of the request that did it (null for the control
plane), `data` the record afterwards (as it was, where the row is gone). A write that changes nothing has its line too.

Records line: `{"record", "kind", "status", "external_id", "copies", "data"}`; `external_id` is a provider's
`external_ref` too. `copies` counts the active records of the kind that say they are the same: equal `external_id`; for
problems equal patient, title, icd10 and onset. 1 is right; 0 = inactive. `data` is what the API answers.

## Faults

A rule: `{"match": {…}, "kind": …, "times": n, "skip": n, …}`.

- `match`: all given parts must agree; `{}` is every API request. `method` · `path` (prefix) · `template` (exact, as in
  the journal) · `fields` (body members equal).
- `times`: how often it acts (null, the default: until removed); `skip`: lets so many matching requests by first.
- The first rule in order that acts wins, one per request. `saves`: whether the request is carried out all the same.

| kind | what the caller sees | own settings (defaults) |
|---|---|---|
| `status` | this status instead of the answer | `status` (500), `body`, `headers` ({}), `saves` (false) |
| `delay` | the true answer, `seconds` after it was carried out or before | `seconds` (1), `saves` (false) |
| `refuse` | connection closed (FIN) after the head, body unread, no answer | |
| `reset_before` | RST, nothing saved | |
| `reset_after` | RST, saved | |
| `late` | RST or silence; saved `seconds` later | `seconds` (1), `answer` (`reset`, or `nothing`) |
| `drip` | the true answer, one byte every `seconds` | `seconds` (0.5), `part` (`body`), `saves` (true) |
| `hang` | silence until the caller hangs up | `saves` (false) |
| `1xx` | `100 Continue` and `102 Processing` in turn for ever | `seconds` (0.5), `saves` (false) |

- `status`: `body` is any JSON, a text is sent as text/html, null is no body; the default is an error of code `fault`.
  So 429 with and without Retry-After (`"headers": {"Retry-After": "2"}`), 500 before and after saving, 502, 503, and a
  200 with an error in its body are all this kind.
- `delay`: waits, then carries out and answers; with `saves: true` carries out, then waits and answers.
- `refuse` reads the body first as long as any rule has `match.fields`.
- `drip`: `part: head` drips head and body; with `saves: false` an empty 200 is dripped.

A connection refused is had by killing the process. Rules are kept in memory only: a restart has none.
"""
