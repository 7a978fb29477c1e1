"""Everything that starts, packs or imitates the surroundings of the service; the service itself never imports it."""
