"""What the report and the studies draw with: style, canvas, curves, and the histories behind them."""
