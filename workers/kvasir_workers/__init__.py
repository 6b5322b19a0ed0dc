"""The engine: scheduler, KV pages, runner and models of one replica."""
