"""LightningModules, one stage a file."""
