"""Bugs that the tests must catch: each takes one rule of docs/protocol.md out of a copy of the code.

`make mutants` runs them and prints what caught each; the list is held to the code by a test.
"""
