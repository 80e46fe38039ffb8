"""A trained model in the forms of other programs: stock transformers, GGUF, Ollama; each with a proof of parity."""
