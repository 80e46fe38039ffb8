"""Each source's own schema to unified records: one node a source."""
