"""Everything that must survive: the ledger, the sync, and both clients. It never receives HTTP from Medplum."""
