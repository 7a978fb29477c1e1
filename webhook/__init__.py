"""HTTP in: verifies a notification and commits it to the ledger. It never maps, and never calls any other system."""
