"""The language-ratio study: the same fine-tuning with another share of Chinese, in two arms."""
