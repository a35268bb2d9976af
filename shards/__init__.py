"""Error types, tables, tar shards, the epoch plan and the batch stream. Imports no other package of this project."""
