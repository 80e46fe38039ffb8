"""Side-by-side measurements: `python -m bench.<name> [--quick] [--data DIR] [--tokenizer DIR]`."""
