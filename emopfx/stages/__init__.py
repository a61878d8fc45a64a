"""The stages' own work; they know neither targets nor commands."""
