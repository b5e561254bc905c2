"""Where a run goes: topologies by their users' names."""
