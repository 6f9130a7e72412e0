"""What is on disk: the store, the folders of a run, records, tables of others."""
