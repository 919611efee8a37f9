"""Networks made small: pruned, quantized, factored, shared."""
