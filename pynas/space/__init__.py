"""The search space: tables, genomes, budgets."""
