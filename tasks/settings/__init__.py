"""What a run is asked to do: the typed settings, profiles, the registry of sources, and errors for people."""
