"""How much of a displacement lies in which basis: bases of a task at a point, and the shares that they capture."""
