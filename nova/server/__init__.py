"""The node's surface: its configuration, its HTTP API, its status page, and the node that stands behind them."""
