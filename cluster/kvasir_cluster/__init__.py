"""Decides and creates: the Ray controller, its gangs and pools."""
