"""The last model of a run in the forms of other programs, each with its card and its certificate."""
