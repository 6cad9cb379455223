"""How this machine reaches others: the one place that looks names up."""
