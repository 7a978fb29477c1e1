"""Both sides compared: what Medplum holds now, mapped, against the legacy records as they are read back.

It only reads: two systems, through the gate and within the quota. What it finds goes into the ledger, page by page with
the position, and what is to be mended is marked due there. It never writes to either system.
"""
