"""Networks of great width: the kernels they follow, and where they stop following them."""
