"""The example: a clinic's practice management system. One file for each resource type; the room that a user replaces.

`REVERSE_SYNC_ROUTES` names the module whose routes are used; this one by default.
"""
