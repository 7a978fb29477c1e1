"""A legacy practice that is as different from the clinic as real systems are from each other.

For the demo and the tests. It never imports the service and never calls anybody; it is no example of how an API should
be.

    python -m deploy.sandbox.practice --port 0 --db var/practice.db --ready-file var/practice.url
        [--token-seconds 300] [--rate 0]
        [--client-id practice-client-id] [--client-secret practice-client-secret]
        [--username practice-username] [--password practice-password]

How it starts, remembers, ends and fails on demand, and its control plane under `/sandbox`: `deploy/sandbox/witness`.
The base URL in the ready file is without `/v2`.

# Tokens (`/oauth/token`)

`POST`, form-encoded, with `client_id` and `client_secret` in the form; no other way to say them.

| form | answers |
|---|---|
| `grant_type=password&username=…&password=…&user_role=users` | 200, first tokens of a new chain |
| `grant_type=refresh_token&refresh_token=…` | 200, new tokens of the same chain |

200 is `{"access_token", "refresh_token", "token_type": "Bearer", "expires_in": "300"}`: texts all.

- A **refresh token can be used once**. Using a dead one is a 400 `{"error": "invalid_grant"}` and **revokes its whole
  chain**, access tokens too. A refresh leaves the chain's older access tokens to their end.
- A wrong password is `invalid_grant` too, a wrong client a 401 `{"error": "invalid_client"}`.
- Access tokens live `--token-seconds`, refresh tokens until they are used. Tokens outlive a restart, a reset and a
  restore.
- Faults meet token requests as any other; the rate limit does not count them. The journal has `***` for password,
  secret and refresh token.

# The API (`/v2`)

`Authorization: Bearer …` on every request, else a 401 of code `unauthorized` (no token, an unknown or ended one). More
than `--rate` calls in any rolling second: **429 without header or body** (those turned away are not counted).

Bodies are **form-encoded** (`application/x-www-form-urlencoded`), lists and objects as JSON inside a field; anything
else is a 400 `unreadable`. Answers are JSON: `{"success": true, "result": {…}}`, a list `{"success": true, "results":
[…], "count": "12", "offset": "0"}`, a no `{"success": false, "error": {"code", "message", "field"}}`, **with status
200** where nothing else is said here. **Every value is a text**: numbers, `"0"` and `"1"`, and `""` for nothing.

Each record has **two keys**: `id`, a number (as text), and one of letters. Some paths want one, some the other.

| request | answers |
|---|---|
| `GET /v2/ping` | `{"success": true, "result": "pong"}`: the harmless probe (it wants a token) |
| `POST /v2/providers` | `{"success": true, "result": {"id": "12", "code": "DR-…"}}` and no more · `npi_taken` |
| `GET /v2/providers?npi=&external_id=` | list |
| `GET /v2/providers/{code}` | the record (removed ones too) · `not_found` |
| `POST /v2/providers/{code}` | `{"success": true}`: what is not sent stays · `not_found` · `removed` · `npi_taken` |
| `POST /v2/providers/{id}/remove` | now `"active": "0"`; **again: 400 `already_removed`** · `not_found` |
| `POST /v2/providers/{id}/restore` | active again or still · `not_found` |
| `POST /v2/patients` | both keys: `{"id": "310001", "chart_no": "CH-…"}` |
| `GET /v2/patients?last_name=&dob=&external_id=` | list |
| `GET /v2/charts/{chart_no}` | the record (removed ones too) · `not_found` |
| `PUT /v2/charts/{chart_no}` | `{"success": true}`: **what is not sent is emptied** · `not_found` · `removed` |
| `POST /v2/patients/{id}/remove` · `…/restore` | as of providers |
| `POST /v2/appointments` | both keys: `{"id": "9000001", "booking": "BK-…"}` · `removed` · `slot_taken` |
| `GET /v2/appointments?patient_id=&provider_id=&reference=&status=` | list, cancelled ones too |
| `GET /v2/appointments/{booking}` | the record, cancelled ones too · `not_found` |
| `POST /v2/appointments/{id}/cancel` | wants a `reason`; **again: 400 `already_cancelled`** · `not_found` |
| | **there is no update**: cancel and book anew |
| `POST /v2/charts/{chart_no}/diagnoses` | both keys: `{"id": "500001", "entry": "DX-…"}` · `not_found` · `removed` |
| `GET /v2/charts/{chart_no}/diagnoses?icd10=` | list · `not_found` |
| `GET /v2/diagnoses/{entry}` | the record · `not_found` |
| `POST /v2/diagnoses/{entry}` | `{"success": true}`: what is not sent stays · `not_found` |
| `POST /v2/diagnoses/{id}/remove` | the row is gone; **again, or never there: 400 `already_removed`** |
| `…/allergies…` | as diagnoses, ids from 700001, entries `AL-…`, filter `substance` |

An unknown path is a 404 `not_found`, a method that is none of a path's a 405 `method`.

## Fields (`*` = required)

| record | field | accepted |
|---|---|---|
| provider | last_name*, first_name* | text, 40 |
| | npi | 10 digits |
| | specialty | text, 40 |
| | external_id | text, 36 |
| patient | last_name*, first_name, middle_name | text, 40 |
| | dob | `YYYY-MM-DD` |
| | gender* | `female male other unknown` |
| | phones | JSON: `[{"type": "home", "number": "5551234567"}]`; types `home mobile work` |
| | email | text with an `@`, 100 |
| | address | JSON: `{"street": …, "city": …, "state": "OH", "zip": …}`, each of them or not |
| | died_at | `YYYY-MM-DD HH:MM:SS`, the practice's wall clock, no zone |
| | pcp_id | id of an existing provider |
| | sms_ok | `0` (default) or `1` |
| | external_id | text, 36 (the FHIR id) |
| | remarks | text, 500: the front desk's own column, which an update can erase |
| appointment | patient_id*, provider_id* | ids of existing ones that are not removed |
| | starts* | `YYYY-MM-DD HH:MM:SS`, the practice's wall clock, no zone |
| | duration* | seconds, 300 to 86400 |
| | reason | text, 200 |
| | reference | text, **20: too short for a uuid** |
| diagnosis | description* | text, 200 |
| | icd10 | `E11.9` |
| | noted_on*, resolved_on | `YYYY-MM-DD` |
| | chronic | `0` (default) or `1` |
| allergy | substance* | text, 200 |
| | reaction | text, 200 |
| | severity | `mild moderate severe` |
| | noted_on | `YYYY-MM-DD` |

Besides: the two keys; `active` of provider and patient; `status` (`booked`, `cancelled`) and `cancel_reason` of an
appointment; `patient_id` and `chart_no` of what is in a chart. They are the practice's own.

## Opinions

- `""` clears, and so does `null` inside an address. A required field that is empty is `invalid`.
- **Unknown fields of a body are silently ignored**, and so are the practice's own.
- A list knows its filters (`last_name` without regard to case) and **ignores unknown and empty ones: then everything
  comes back**. Paged by `offset` (0) and `limit` (20, at most 100; more is silently 100), in order of the id; `count`
  counts all hits. Removed providers and patients are not in lists.
- Duplicates are silently made. Only an npi is unique among active providers (`npi_taken`, naming the other provider),
  and a provider's slot: another *patient's* booking at the same start is `slot_taken`, with that patient's name. The
  same patient can book the same slot twice.
- Only the first complaint is told, with its value and whom it is about: `{"code": "invalid", "message": "dob: '1980' is
  not a date like YYYY-MM-DD for Doe, Jane", "field": "dob"}`.
- No ETag, no version, no `updated_at`.

# What the control plane tells

Records are named by their ids: `provider/12`, `patient/310001`, `appointment/9000001`, `diagnosis/500001`,
`allergy/700001`. `status` is `active`, `inactive` (removed), `booked` or `cancelled`; `external_id` is an appointment's
`reference` too. Records are the same if their `external_id` is equal; appointments: patient, provider and start;
diagnoses: patient, description, icd10 and noted_on; allergies: patient, substance and noted_on. `inactive` and
`cancelled` ones stand there as deleted: no copy. The journal's `body` is the form as an object of texts.

Besides the witness's requests:

| request | does |
|---|---|
| `GET /sandbox/tokens` | NDJSON `{"n", "use", "chain", "state", "issued_at", "expires_at"}`, without the token itself |
| `POST /sandbox/tokens` | `{"end": "expire"}`: every access token ends now · `{"end": "revoke"}`: refresh tokens too |

`use` is `access` or `refresh`, `state` is `live`, `used` or `revoked` (an access token that has ended stays `live`).
"""
