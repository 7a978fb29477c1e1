"""Medplum's Subscriptions: what the routes need, what is there, how it stands, and why a notification does not come.

`planning` and `applying` are for a person with an administrator's credential; `watching` runs in a worker, which reads
and switches on again, and nothing else. No SQL here, and no message holds a secret.
"""
