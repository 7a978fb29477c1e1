"""`python -m worker.cli` is `reverse-sync`, also where the package's scripts are not installed."""

from worker.cli import main

main()
