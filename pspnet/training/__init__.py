"""Plain torch: one loop per task, and what the two loops share."""
