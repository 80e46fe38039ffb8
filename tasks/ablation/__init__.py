"""The FFN ablation: every kind of feed-forward layer, side by side."""
