"""The recipe of the small model that ships with exo: its text, its tokenizer and its network."""
