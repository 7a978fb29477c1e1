"""Stand-ins for Medplum and for two legacy systems, each a process of its own, for the demo and the tests."""
