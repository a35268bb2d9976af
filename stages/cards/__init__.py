"""The files for users of shards and exported models: cards, metadata, licences."""
