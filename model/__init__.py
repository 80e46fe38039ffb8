"""The network and its training engine: needs torch, transformers and pyarrow, nothing above."""
