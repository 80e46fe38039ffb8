"""Models by path, asked the same questions: the flow steel-compare/models and the truth table."""
