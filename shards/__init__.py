"""Records, tables, tar shards, the epoch plan and the stream. Imports nothing else of ours."""
