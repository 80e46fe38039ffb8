"""Every model is asked every benchmark, by every protocol and its control."""
