"""Other servers beside this one: same checkpoint, type and threads, one client, rounds in turning order.

bench/peers/setup                once: environments of the peers, two random models, their GGUF files
python -m bench.peers            every peer that is there, one after another; prints the tables
"""
