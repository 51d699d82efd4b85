"""Reading and using devices. Knows `shared.types` only."""
