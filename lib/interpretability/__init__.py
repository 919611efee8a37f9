"""Looking inside networks: what a decision rests on, and what the parts do."""
