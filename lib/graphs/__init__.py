"""Networks on graphs: how deep, how local, how much they can learn from few labels."""
