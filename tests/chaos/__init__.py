"""Faults injected into the whole real system under traffic, and a judge who looks at both ends afterwards.

    make chaos ARGS="--seed 1 --changes 20000 --database postgresql"

`plan` draws from the seed what is done when, `front` writes at Medplum, `blows` strike, `run` plays one run, `verdict`
judges it from the clinic's own history and Medplum's own versions: from nothing that the service says of itself, but
for what it lists as needing a person. Not a package of tests; the short run in CI is tests/acceptance/test_chaos_short.
"""
