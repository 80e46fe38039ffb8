"""The FFN study: every kind of feed-forward layer, side by side."""
