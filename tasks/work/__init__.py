"""Where pieces of work run, and what outlives a kill."""
