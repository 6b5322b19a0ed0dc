"""Decides which replicas there should be, creates them through Ray, and replaces those that are lost."""
