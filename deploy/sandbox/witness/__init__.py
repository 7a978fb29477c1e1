"""What the legacy stand-ins have in common: an honest memory, faults on demand, a control plane, a process.

A system says what its API does (`system.System`) and what its records are (`store.Habits`); everything below is the
same for each. It never calls anybody, and what a system answers is none of its business.

Each is started as `python -m deploy.sandbox.<name> --port 0 --db PATH --ready-file PATH` and its own options. Port 0
takes a free port; the base URL (`http://127.0.0.1:<port>`) is written to the ready file once requests are answered. The
same port can be taken again at once after a kill. What was answered is on disk before the answer leaves (SQLite, WAL,
synchronous=FULL). SIGTERM ends it at once with exit code 0: calls in flight are cut, late writes that are not due yet
never happen (as in a crash). A request that has arrived is carried out, whether or not the caller still listens.

# The control plane (`/sandbox`, no key, never journalled, never subject to faults)

| request | does |
|---|---|
| `GET /sandbox/journal?since=n` | NDJSON of the API requests with a number above n |
| `GET /sandbox/history?since=n` | NDJSON of the applied changes, in the order in which they took effect |
| `GET /sandbox/records` | NDJSON of all records; `?kind=patient`, `?duplicates=1` (active with a twin) narrow |
| `POST /sandbox/faults` | adds a rule or a list of rules → `{"data": [rules]}`; 422 says what is wrong with one |
| `GET /sandbox/faults` · `DELETE` | lists (with what is left of `times`) · removes all |
| `POST /sandbox/edit` | somebody edits in the system's own screens; nothing is checked |
| `POST /sandbox/snapshot` · `restore` | keeps · brings back records and numbers; journal and history go on |
| `POST /sandbox/reset` | empty again: records, numbers, journal, history, snapshots, faults, late writes |

`edit` takes `{"record": "patient/4701", "fields": {…}}`, or `{"record": …, "remove": true}` to take the row away;
`snapshot` and `restore` take `{"name": "…"}` (default `default`). After a restore numbers come again: they go back to
the snapshot's, keys that are drawn at random do not.

Journal line: `{"n", "method", "template", "path", "query", "received_at", "applied_at", "idempotency_key", "trace_id",
"record", "body", "outcome", "status", "fault"}`. Times are seconds since 1970 (float); `template` is like
`/api/patients/{uuid}`; `trace_id` is `x-trace-id`, else `traceparent`; `record` is `patient/4701`, `provider/3`,
`problem/17`; `body` is what came, as JSON (null if none or unreadable); `status` is what was answered (null: nothing);
`fault` the kind of the rule that was applied. `outcome`: `pending` (has arrived, not carried out yet) · `applied` (a
write was saved) · `read` · `refused` (the system said no) · `dropped` (a fault kept it from being carried out).

History line: `{"n", "at", "record", "operation", "journal", "data"}`; operation is `create`, `update`, `delete`,
`undelete`, `edit`, `remove` or `restore` (record null), `journal` the number of the request that did it (null for the
control plane), `data` the record afterwards (as it was, where the row is gone). A write that changes nothing has its
line too.

Records line: `{"record", "kind", "status", "external_id", "copies", "data"}`. `copies` counts the active records of the
kind that say they are the same, as each system's own page says. 1 is right; 0 = the record stands there as deleted.
`data` is what the API answers.

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
