"""Comparisons of parts: named arms, equal budgets, one table."""
