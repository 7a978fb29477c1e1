"""Enough of Medplum for the demo and the tests: a process that behaves as a real server was observed to.

    python -m deploy.sandbox.medplum --port 0 --db PATH --ready-file PATH [--config PATH] [--client ID:SECRET]…

State is one SQLite file; a restart keeps resources, history, pending deliveries and access tokens (faults are in memory
and end with the process). The base URL is written to the ready file as one line. SIGTERM ends it at once with code 0.

Clients: `sync` (50,000 units a minute), `frontend` and `admin` (without a limit worth the name; `admin` may set ids);
secrets `sync-secret`, `frontend-secret`, `admin-secret`. Each writes as `ClientApplication/<id>`. The configuration
file changes and adds some: `{"project": id, "clients": {id: {"secret", "name", "profile": "Practitioner/…",
"units_per_minute", "may_set_id"}}}`.

The API: `POST /oauth2/token`, `GET /auth/me`, and under `/fhir/R4` create, read, update, patch, delete, `_history`,
`$expunge`, `$resend`, search, batch, transaction. `GET Binary/<id>` answers with its content, unless the resource is
asked for as FHIR JSON; there are no uploads, and a presigned URL opens nothing. A request head beyond 16 KiB is a 431,
as with Node. Rest-hook Subscriptions are resources like any other.

Control plane, loopback only, without authentication, JSON in and out; what it does not understand is a 400 that says
what it would. Every request below is a POST unless it says GET.

GET /sandbox/state
    `{"resources": {type: {"present": n, "deleted": n}}, "versions": n, "subscriptions": [ids of the active],
    "deliveries": {"pending": n (under way included), "delivered", "failed_attempts", "given_up", "dropped" (resource
    deleted or superseded, Subscription gone), "lost" (by a fault)}, "faults": {…}}`

/sandbox/faults
    Changes the named switches and leaves the others; `/sandbox/clear` switches everything right. Both answer with all.
    - `api`: list of rules; the first that matches a request rules its answer. A rule: `status` (none: the right answer,
      late or dripping), `types`, `methods`, `clients` (lists, empty: all), `path` (prefix, default `/fhir/R4`; tokens:
      `/oauth2`), `times` (how many requests; none: until cleared), `delay_seconds`, `drip_seconds` (the body comes one
      byte each so many seconds), `after` (the operation is done, only its answer is lost), `headers`
    - `stale_get`: GET by id answers 200 with the last live version of a deleted resource; `_history` and searches tell
      the truth
    - `stale_search`: searches see the versions that were current when it was switched on
    - `hidden`: `{client: ["Type", "Type/id", …]}` left out by its access policy: a type is 403, a resource 404 or
      not found
    - `hidden_fields`: `{client: {"Type": [member, …]}}`
    - `expire_tokens`: true makes every token unknown, once
    - `units_per_minute`: quota of every client
    - `concurrent_writers`: an update gets the superseded version's `lastUpdated` or one some milliseconds older, in
      turns
    - `frozen_clock`: an instant that every write gets
    - `early_delete_seconds`: a transaction's deletes are sent so long before it commits
    - `drop_rate`, `drop_types`, `duplicate_rate`, `delay_seconds`, `reorder_seconds` (a random delay up to): of
      notifications of changes made from now on
    - `hold_deliveries`: nothing is sent until it is false again
    - `retry_scale`: factor for the gaps of 1, 2, 4, 8 s between attempts
    - `switch_off_after`: so many events in a row given up set their Subscription to `off`, with `error`

/sandbox/notify
    `{"reference": "Type/id", "interaction": "create" | "update" | "delete"}` is sent to the Subscriptions of the type
    whatever the state of the resource; also `version` (a versionId of its history; default: the current one),
    `subscription` (id), `times`, `trace_id`, `body` (text or JSON instead of the version's), `secret` (signs instead of
    the Subscription's). Answers `{"queued": n}`.

/sandbox/load
    `{"resource": {…}}` or `{"resources": […]}`: stored as they are, id and meta included, as the newest version; known
    versions are left alone. `notify` (default false) with `interaction` (default update, or delete); `deleted: true`
    stores deletions; `current: false` stores superseded versions. Answers `{"loaded": n, "known": n}`.

/sandbox/bulk
    `{"resources": […], "deletes": ["Type/id", …]}` in one transaction, in that order, each like a create (an id is
    kept), an update or a delete; `author` (client id, reference, or object; default `frontend`), `notify` (default
    true), `trace_id`, `lastUpdated` (one instant for all).
    Answers `{"versions": [{"reference", "versionId", "lastUpdated"}]}`. Some 8,000 a second; nothing else is answered
    meanwhile.

GET /sandbox/resources?type=Type
    NDJSON of all current resources (without `type`: of all but AuditEvent), as stored:
    `{"reference", "versionId", "lastUpdated", "deleted": bool, "resource": {…} | null}`. The tests' source of truth.

/sandbox/reset
    Forgets everything, faults and tokens included.

What it does not imitate: access policies beyond `hidden`, validation of resources, Bots, websockets, chained searches,
conditional creates, https endpoints.
"""
