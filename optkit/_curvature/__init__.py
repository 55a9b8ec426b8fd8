"""What the curvature is: symmetric Lineax operators, and estimates of their entries."""
