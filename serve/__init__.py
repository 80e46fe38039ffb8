"""A model as a server: an OpenAI-compatible API with batched decoding, and a chat page. Knows only the floor `model`."""
