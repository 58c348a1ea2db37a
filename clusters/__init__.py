"""Where a run can go: cluster files and the schema that reads them."""
