"""Everything that runs: rooms in one order, each of which imports only those before it (README.md)."""
