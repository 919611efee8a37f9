"""The press: what runs, checks and prints the chapters (`python -m book`)."""
