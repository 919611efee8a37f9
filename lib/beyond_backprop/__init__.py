"""Training without, or with less than, backpropagation."""
