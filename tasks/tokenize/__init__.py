"""The tokenizer, and cleaned records to packed Arrow shards and their manifest."""
