"""Part science: networks that learn differential equations, and numerics that learns."""
