"""The ladder of solvers: a cost problem becomes a plan with a proof of how far from the best it can be. Pure."""
