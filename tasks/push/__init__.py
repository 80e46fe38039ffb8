"""An export folder on its way to a hub: what would go, what must not, and the two hubs it can go to."""
