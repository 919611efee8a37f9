"""In-context learning: what a network learns from its input, with its weights at rest."""
