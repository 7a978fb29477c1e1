"""The demo: real processes on this machine, two stand-ins for the systems on both sides, and a play in six acts.

    reverse-sync demo [--once]        (or `make demo`; python -m deploy.demo)

It shows nothing that is not so: every figure is read from the ledger or asked of the stand-ins, and the end compares
every resource with its legacy record. What it makes is under `var/demo`, new each time, its logs under `var/log`.
"""
