"""Values and pure functions that every room shares. Imports nothing else of exo."""
