"""Stand-ins for Medplum and for a legacy system, each a process of its own, for the demo and the tests."""
