"""What runs where: profiles, cost model, solvers, run-time placement."""
