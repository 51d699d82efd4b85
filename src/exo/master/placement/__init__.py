"""Which device runs which layers: problem, solvers, evaluator, explanation. Pure."""
