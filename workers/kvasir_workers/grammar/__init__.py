"""Answers of a given form: what was asked for, compiled once, and followed token by token (through llguidance)."""
