"""The unified record, the files that hold records, and the accounts of what became of each."""
