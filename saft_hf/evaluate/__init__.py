"""Is the tuned model safer, and at what cost: judges, likelihoods, utility, and the contamination experiment."""
