"""How stages are run: each target knows one kind of place."""
