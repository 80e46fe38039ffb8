"""The stage contract: nodes declared, fingerprinted, skipped or run, sealed, recorded."""
