"""Kvasir: serve large language models on one machine or on many."""
