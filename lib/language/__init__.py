"""Language models and instructions: how these are found and used, and where a skill sits."""
