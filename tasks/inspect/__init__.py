"""Looking at what is there: artifacts, models, records, data sets. Only flows/ depends on it."""
