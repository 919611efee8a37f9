"""What every chapter shares: seeds, data, fitting, meters, claims, figures."""
